"""The inputs of a prediction, checked before any work is done."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from src.chat.prompt_length import MAX_CHARACTERS_PER_TOKEN
from src.chat.template import PLAIN, with_template
from src.errors import UserError
from src.serving.messages import parse_messages
from src.serving.output.stopping import parse_stop_sequences
from src.serving.sampling.params import SamplingParams
from src.serving.unicode_text import check_unicode

MAX_LOGPROBS = 20
MAX_OUTPUTS = 16
TEXTS = ("prompt", "system_prompt", "prompt_template", "messages")


@dataclass(frozen=True)
class RequestInputs:
    """What a request asks for."""

    settings: SamplingParams
    stop_sequences: tuple[str, ...]
    prompt: str
    system_prompt: str | None
    prompt_template: str | None
    messages: str | None
    replicate_weights: str | None
    json_schema: str | None
    num_logprobs: int
    """-1 is none."""
    num_outputs: int
    debug: bool


def check_inputs(request: Mapping[str, Any], *, max_seq_len: int) -> RequestInputs:
    """Return the inputs of a request; raises UserError for one that cannot be answered."""
    seed = request["seed"]
    if seed is None:
        seed = secrets.randbelow(2**31)
        print(f"seed {seed}", flush=True)
    # Cog lets 3.0 pass for an integer.
    settings = SamplingParams(
        **{
            name: kind(seed if name == "seed" else request[name])
            for name, kind in SamplingParams.__annotations__.items()
        }
    )
    for name in TEXTS:
        _check_text(name, request[name] or "", max_seq_len * MAX_CHARACTERS_PER_TOKEN)
    if request["messages"] is not None and request["prompt"]:
        raise UserError("messages: expected an empty prompt beside it, found one that is not empty")
    # These two are wrong whatever the weights are, and fetching those may take minutes.
    if request["prompt_template"] is not None:
        with_template(PLAIN, request["prompt_template"])
    if request["messages"] is not None:
        parse_messages(request["messages"], default_system="")
    num_outputs = int(request["num_outputs"])
    if not 1 <= num_outputs <= MAX_OUTPUTS:
        raise UserError(
            f"num_outputs: expected a number from 1 to {MAX_OUTPUTS}, got {num_outputs}"
        )
    num_logprobs = -1 if request["logprobs"] is None else int(request["logprobs"])
    if request["logprobs"] is not None and not 0 <= num_logprobs <= MAX_LOGPROBS:
        raise UserError(f"logprobs: expected a number from 0 to {MAX_LOGPROBS}, got {num_logprobs}")
    return RequestInputs(
        settings=settings,
        stop_sequences=parse_stop_sequences(request["stop_sequences"]),
        prompt=request["prompt"],
        system_prompt=request["system_prompt"],
        prompt_template=request["prompt_template"],
        messages=request["messages"],
        replicate_weights=request["replicate_weights"],
        json_schema=request["json_schema"],
        num_logprobs=num_logprobs,
        num_outputs=num_outputs,
        debug=request["debug"],
    )


def _check_text(name: str, text: str, limit: int) -> None:
    if len(text) > limit:
        raise UserError(f"{name}: expected at most {limit:,} characters, found {len(text):,}")
    check_unicode(name, text)
