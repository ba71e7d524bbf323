"""The inputs of a prediction: from a prompt to a stream of text."""

import gc

from cog import (
    AsyncConcatenateIterator,
    BaseRunner,
    ConcatenateIterator,
    Input,
    concurrent,
    streaming,
)

from src.process_tree import end_with_server


class Inputs:
    """What both predictors take; Cog's parser resolves them only within this file."""

    prompt = Input(description="Plain text, or a conversation with its user turns in [INST] tags")
    system_prompt = Input(
        description="System prompt, by default that of the weights or of the base model",
        default=None,
    )
    prompt_template = Input(
        description="Text with {prompt} and {system_prompt}, by default that of the weights or of the base model",
        default=None,
    )
    max_new_tokens = Input(description="Most tokens to generate", default=128, ge=1)
    min_new_tokens = Input(description="Fewest tokens to generate, -1 is off", default=-1, ge=-1)
    temperature = Input(description="Randomness of the text, 0 is greedy", default=0.7, ge=0, le=5)
    top_p = Input(
        description="Sample from the most likely tokens that make up this share",
        default=0.95,
        ge=0,
        le=1,
    )
    top_k = Input(
        description="Sample from this many most likely tokens, -1 is off", default=-1, ge=-1
    )
    repetition_penalty = Input(
        description="Above 1 makes tokens less likely that were seen before, 1 is off",
        default=1.15,
        ge=0,
    )
    stop_sequences = Input(
        description="Where to stop: comma-separated, or a JSON list of strings", default=None
    )
    seed = Input(description="Random seed, by default or at -1 drawn at random", default=None)
    debug = Input(description="Log the formatted prompt, timings and memory", default=False)
    replicate_weights = Input(
        description="Fine-tuned weights for this request: a URL, or a path below WEIGHTS_DIR",
        default=None,
    )
    tools = Input(
        description="Tools that the model may call: a JSON list as OpenAI's clients send it, rendered by the model's chat template",
        default=None,
    )
    messages = Input(
        description="A conversation as a JSON list of messages with role and content, in place of the prompt",
        default=None,
    )
    json_schema = Input(description="JSON schema that the answer must follow", default=None)
    logprobs = Input(
        description="Report each token's log probability and those of this many best tokens",
        default=None,
        ge=0,
        le=20,
    )
    num_outputs = Input(
        description="Answers to generate; several come as one JSON list of strings",
        default=1,
        ge=1,
        le=16,
    )


class Predictor(BaseRunner):
    """Answers one request at a time and streams its text."""

    def setup(self, weights: str | None = None) -> None:  # type: ignore[override]
        """Load the base model, and the container's own fine-tuned weights if it has any."""
        end_with_server()
        # What is imported and loaded stays; looking for garbage in it takes a tenth of the time.
        gc.disable()
        # Here, so that the inputs can be read without loading torch.
        from src.serving.end_with_engine import end_with_engine
        from src.serving.predictor import TextPredictor
        from src.serving.refusal import refuse_trainings

        self.predictor = TextPredictor(weights)
        end_with_engine(self.predictor)
        gc.enable()
        self.run = refuse_trainings(self.run)  # type: ignore[method-assign]

    @streaming
    def run(
        self,
        prompt: str = Inputs.prompt,
        system_prompt: str | None = Inputs.system_prompt,
        prompt_template: str | None = Inputs.prompt_template,
        max_new_tokens: int = Inputs.max_new_tokens,
        min_new_tokens: int = Inputs.min_new_tokens,
        temperature: float = Inputs.temperature,
        top_p: float = Inputs.top_p,
        top_k: int = Inputs.top_k,
        repetition_penalty: float = Inputs.repetition_penalty,
        stop_sequences: str | None = Inputs.stop_sequences,
        seed: int | None = Inputs.seed,
        debug: bool = Inputs.debug,
        replicate_weights: str | None = Inputs.replicate_weights,
        tools: str | None = Inputs.tools,
        messages: str | None = Inputs.messages,
        json_schema: str | None = Inputs.json_schema,
        logprobs: int | None = Inputs.logprobs,
        num_outputs: int = Inputs.num_outputs,
    ) -> ConcatenateIterator[str]:  # type: ignore[misc]
        """Stream the answer to the prompt."""
        request = {
            "prompt": prompt, "system_prompt": system_prompt, "prompt_template": prompt_template,
            "max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens,
            "temperature": temperature, "top_p": top_p, "top_k": top_k,
            "repetition_penalty": repetition_penalty, "stop_sequences": stop_sequences,
            "seed": seed, "debug": debug, "replicate_weights": replicate_weights,
            "tools": tools, "messages": messages, "json_schema": json_schema,
            "logprobs": logprobs, "num_outputs": num_outputs,
        }  # fmt: skip
        yield from self.predictor.stream(request, record_metric=self.scope.record_metric)  # type: ignore[misc]


class ConcurrentPredictor(Predictor):
    """Answers many requests at once; Cog delivers each answer when it is complete."""

    @concurrent(max=32)
    async def run(  # type: ignore[override]
        self,
        prompt: str = Inputs.prompt,
        system_prompt: str | None = Inputs.system_prompt,
        prompt_template: str | None = Inputs.prompt_template,
        max_new_tokens: int = Inputs.max_new_tokens,
        min_new_tokens: int = Inputs.min_new_tokens,
        temperature: float = Inputs.temperature,
        top_p: float = Inputs.top_p,
        top_k: int = Inputs.top_k,
        repetition_penalty: float = Inputs.repetition_penalty,
        stop_sequences: str | None = Inputs.stop_sequences,
        seed: int | None = Inputs.seed,
        debug: bool = Inputs.debug,
        replicate_weights: str | None = Inputs.replicate_weights,
        tools: str | None = Inputs.tools,
        messages: str | None = Inputs.messages,
        json_schema: str | None = Inputs.json_schema,
        logprobs: int | None = Inputs.logprobs,
        num_outputs: int = Inputs.num_outputs,
    ) -> AsyncConcatenateIterator[str]:  # type: ignore[misc]
        """Answer the prompt beside others."""
        request = {
            "prompt": prompt, "system_prompt": system_prompt, "prompt_template": prompt_template,
            "max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens,
            "temperature": temperature, "top_p": top_p, "top_k": top_k,
            "repetition_penalty": repetition_penalty, "stop_sequences": stop_sequences,
            "seed": seed, "debug": debug, "replicate_weights": replicate_weights,
            "tools": tools, "messages": messages, "json_schema": json_schema,
            "logprobs": logprobs, "num_outputs": num_outputs,
        }  # fmt: skip
        async for text in self.predictor.stream_async(
            request, record_metric=self.scope.record_metric
        ):
            yield text  # type: ignore[misc]
