"""The inputs of a prediction, parsed once and checked before any work is done."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from src.chat.chat_format import ChatFormat
from src.chat.conversation import Conversation
from src.chat.prompt_length import MAX_CHARACTERS_PER_TOKEN, check_prompt_length
from src.chat.template import check_template, warn_of_escapes
from src.chat.tokenizer import Tokenizer, check_unicode
from src.errors import UserError
from src.serving.messages import MAX_MESSAGES, parse_messages, parse_tools
from src.serving.output.stopping import parse_stop_sequences
from src.serving.sampling import SamplingParams

MAX_LOGPROBS = 20
MAX_OUTPUTS = 16
TEXTS = ("prompt", "system_prompt", "prompt_template", "messages", "tools")


@dataclass(frozen=True)
class RequestInputs:
    """What a request asks for."""

    prompt: str
    conversation: Conversation | None
    """What `messages` hold, in place of the prompt."""
    tools: tuple[dict[str, Any], ...]
    system_prompt: str | None
    prompt_template: str | None
    sampling: SamplingParams
    stop_sequences: tuple[str, ...]
    replicate_weights: str | None
    json_schema: str | None
    num_logprobs: int
    """-1 is none."""
    num_outputs: int
    debug: bool


def parse_inputs(request: Mapping[str, Any], *, max_seq_len: int) -> RequestInputs:
    """Return the inputs of a request; raises UserError for one that cannot be answered."""
    # An empty text is none, as forms and command lines send it.
    request = {n: None if v == "" and n != "prompt" else v for n, v in request.items()}
    seed = request["seed"]
    if seed in (None, -1):
        seed = secrets.randbelow(2**31)
        print(f"seed {seed}", flush=True)
    # Cog lets 3.0 pass for an integer.
    sampling = SamplingParams(
        max_new_tokens=int(request["max_new_tokens"]),
        min_new_tokens=int(request["min_new_tokens"]),
        temperature=float(request["temperature"]),
        top_p=float(request["top_p"]),
        top_k=int(request["top_k"]),
        repetition_penalty=float(request["repetition_penalty"]),
        seed=int(seed),
    )
    for name in TEXTS:
        _check_text(name, request[name] or "", max_seq_len * MAX_CHARACTERS_PER_TOKEN)
    if request["prompt_template"] is not None:
        check_template(request["prompt_template"])
    stopping, system_prompt = request["stop_sequences"], request["system_prompt"]
    stop_sequences = parse_stop_sequences(stopping) if stopping else ()
    for name, text in (
        ("prompt_template", request["prompt_template"]),
        ("stop_sequences", "".join(stop_sequences)),
    ):
        if warning := warn_of_escapes(name, text):
            print(warning, flush=True)
    conversation = None
    if request["messages"] is not None:
        if request["prompt"]:
            raise UserError(
                "messages: expected an empty prompt beside it, found one that is not empty"
            )
        conversation = parse_messages(request["messages"])
    return RequestInputs(
        prompt=request["prompt"],
        conversation=conversation,
        tools=parse_tools(request["tools"]) if request["tools"] else (),
        system_prompt=system_prompt,
        prompt_template=request["prompt_template"],
        sampling=sampling,
        stop_sequences=stop_sequences,
        replicate_weights=request["replicate_weights"],
        json_schema=request["json_schema"],
        num_logprobs=_number(request, "logprobs", 0, MAX_LOGPROBS, default=-1),
        num_outputs=_number(request, "num_outputs", 1, MAX_OUTPUTS, default=1),
        debug=request["debug"],
    )


def build_conversation(
    inputs: RequestInputs, chat_format: ChatFormat, tokenizer: Tokenizer, *, max_seq_len: int
) -> Conversation:
    """Return the conversation to go on with; raises UserError for one that is too long."""
    if inputs.conversation is None:
        if chat_format.begins_with_bos(inputs.prompt):
            print(
                "warning: the leading <s> of the prompt is left out: every prompt has one",
                flush=True,
            )
        conversation = chat_format.of_prompt(inputs.prompt, inputs.system_prompt)
        num_turns = sum(message["role"] == "user" for message in conversation.messages)
        if num_turns > MAX_MESSAGES:
            raise UserError(
                f"prompt: expected at most {MAX_MESSAGES:,} turns in [INST] tags, "
                f"found {num_turns:,}"
            )
    else:
        asked = inputs.system_prompt
        system = chat_format.system_prompt if asked is None else asked
        conversation = inputs.conversation.with_system(system)
    conversation = replace(conversation, tools=inputs.tools)
    check_prompt_length(conversation, tokenizer, max_seq_len=max_seq_len)
    return conversation


def _check_text(name: str, text: str, limit: int) -> None:
    if len(text) > limit:
        raise UserError(f"{name}: expected at most {limit:,} characters, found {len(text):,}")
    check_unicode(name, text)


def _number(
    request: Mapping[str, Any], name: str, lowest: int, highest: int, *, default: int
) -> int:
    if request[name] is None:
        return default
    if not lowest <= int(request[name]) <= highest:
        raise UserError(
            f"{name}: expected a number from {lowest} to {highest}, got {request[name]}"
        )
    return int(request[name])
