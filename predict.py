"""The inputs of a prediction: from a prompt to a stream of text."""

from typing import Any

from cog import (
    AsyncConcatenateIterator,
    BasePredictor,
    ConcatenateIterator,
    Input,
    concurrent,
    current_scope,
    streaming,
)

from src.process_tree import end_with_parent
from src.serving.predictor import TextPredictor


class Predictor(BasePredictor):
    """Answers one request at a time and streams its text."""

    def setup(self, weights: str | None = None) -> None:  # type: ignore[override]
        """Load the base model, and the container's own fine-tuned weights if it has any."""
        end_with_parent()
        self.predictor = TextPredictor(weights)

    @streaming
    def predict(
        self,
        prompt: str = Input(
            description="Plain text, or a dialogue with its user turns in [INST] tags"
        ),
        system_prompt: str | None = Input(
            description="System prompt, by default that of the weights or of the base model",
            default=None,
        ),
        prompt_template: str | None = Input(
            description="Text with {prompt} and {system_prompt}, by default that of the weights or of the base model",
            default=None,
        ),
        max_new_tokens: int = Input(description="Most tokens to generate", default=128, ge=1),
        min_new_tokens: int = Input(
            description="Fewest tokens to generate, -1 is off", default=-1, ge=-1
        ),
        temperature: float = Input(
            description="Randomness of the text, 0 is greedy", default=0.7, ge=0, le=5
        ),
        top_p: float = Input(
            description="Sample from the most likely tokens that make up this share",
            default=0.95,
            ge=0,
            le=1,
        ),
        top_k: int = Input(
            description="Sample from this many most likely tokens, -1 is off", default=-1, ge=-1
        ),
        repetition_penalty: float = Input(
            description="Above 1 makes tokens less likely that were seen before, 1 is off",
            default=1.15,
            ge=0,
        ),
        stop_sequences: str | None = Input(
            description="Where to stop: comma-separated, or a JSON list of strings", default=None
        ),
        seed: int | None = Input(
            description="Random seed, by default drawn at random", default=None
        ),
        debug: bool = Input(
            description="Log the formatted prompt, timings and memory", default=False
        ),
        replicate_weights: str | None = Input(
            description="Fine-tuned weights for this request: a URL, or a path below WEIGHTS_DIR",
            default=None,
        ),
        messages: str | None = Input(
            description="A dialogue as a JSON list of messages with role and content, in place of the prompt",
            default=None,
        ),
        json_schema: str | None = Input(
            description="JSON schema that the answer must follow", default=None
        ),
        logprobs: int | None = Input(
            description="Report each token's log probability and those of this many best tokens",
            default=None,
            ge=0,
            le=20,
        ),
        num_outputs: int = Input(
            description="Answers to generate; several come as one JSON list of strings",
            default=1,
            ge=1,
            le=16,
        ),
    ) -> ConcatenateIterator[str]:  # type: ignore[misc]
        """Stream the answer to the prompt."""
        request = {name: value for name, value in locals().items() if name != "self"}
        scope: Any = current_scope()
        yield from self.predictor.stream(request, record_metric=scope.record_metric)  # type: ignore[misc]


class ConcurrentPredictor(BasePredictor):
    """Answers many requests at once; Cog delivers each answer when it is whole."""

    # Cog reads signatures without running them, so this one is written out again.

    def setup(self, weights: str | None = None) -> None:  # type: ignore[override]
        """Load the base model, and the container's own fine-tuned weights if it has any."""
        end_with_parent()
        self.predictor = TextPredictor(weights)

    @concurrent(max=32)
    async def predict(  # type: ignore[override]
        self,
        prompt: str = Input(
            description="Plain text, or a dialogue with its user turns in [INST] tags"
        ),
        system_prompt: str | None = Input(
            description="System prompt, by default that of the weights or of the base model",
            default=None,
        ),
        prompt_template: str | None = Input(
            description="Text with {prompt} and {system_prompt}, by default that of the weights or of the base model",
            default=None,
        ),
        max_new_tokens: int = Input(description="Most tokens to generate", default=128, ge=1),
        min_new_tokens: int = Input(
            description="Fewest tokens to generate, -1 is off", default=-1, ge=-1
        ),
        temperature: float = Input(
            description="Randomness of the text, 0 is greedy", default=0.7, ge=0, le=5
        ),
        top_p: float = Input(
            description="Sample from the most likely tokens that make up this share",
            default=0.95,
            ge=0,
            le=1,
        ),
        top_k: int = Input(
            description="Sample from this many most likely tokens, -1 is off", default=-1, ge=-1
        ),
        repetition_penalty: float = Input(
            description="Above 1 makes tokens less likely that were seen before, 1 is off",
            default=1.15,
            ge=0,
        ),
        stop_sequences: str | None = Input(
            description="Where to stop: comma-separated, or a JSON list of strings", default=None
        ),
        seed: int | None = Input(
            description="Random seed, by default drawn at random", default=None
        ),
        debug: bool = Input(
            description="Log the formatted prompt, timings and memory", default=False
        ),
        replicate_weights: str | None = Input(
            description="Fine-tuned weights for this request: a URL, or a path below WEIGHTS_DIR",
            default=None,
        ),
        messages: str | None = Input(
            description="A dialogue as a JSON list of messages with role and content, in place of the prompt",
            default=None,
        ),
        json_schema: str | None = Input(
            description="JSON schema that the answer must follow", default=None
        ),
        logprobs: int | None = Input(
            description="Report each token's log probability and those of this many best tokens",
            default=None,
            ge=0,
            le=20,
        ),
        num_outputs: int = Input(
            description="Answers to generate; several come as one JSON list of strings",
            default=1,
            ge=1,
            le=16,
        ),
    ) -> AsyncConcatenateIterator[str]:  # type: ignore[misc]
        """Answer the prompt beside others."""
        request = {name: value for name, value in locals().items() if name != "self"}
        scope: Any = current_scope()
        async for text in self.predictor.stream_async(request, record_metric=scope.record_metric):
            yield text  # type: ignore[misc]
