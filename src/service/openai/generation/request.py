"""What chat/completions and completions have in common, as inputs of `predict`."""

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from src.service.openai.errors import bad_request
from src.service.openai.fields import Fields

MAX_CHOICES = 16
MAX_TOKENS = 2**31 - 1
"""An answer that may be so long ends with the context."""
MAX_SEED = 2**31 - 1
SAMPLING = frozenset(
    {
        *("model", "stream", "stream_options", "n", "seed", "stop", "temperature", "top_p"),
        *("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "max_tokens"),
        *("top_k", "min_tokens", "repetition_penalty"),
    }
)
"""Fields of both; servers of open models have the last three, OpenAI's has not."""
WITHOUT_EFFECT = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "prompt_cache_options", "moderation"),
    }
)
"""Fields that change nothing in an answer."""


@dataclass(frozen=True)
class GenerationRequest:
    """A request as it goes to the engine: `num_choices` times, with a seed of its own each."""

    model: str
    inputs: dict[str, Any]
    """Of `predict`, without seed and weights."""
    seed: int
    num_choices: int
    is_streamed: bool
    has_usage: bool
    """Whether a stream ends with the usage."""
    has_logprobs: bool
    ignored: tuple[str, ...] = field(default=())
    """Fields that would change the answer elsewhere, and do not here."""

    def inputs_of(self, number: int, **more: Any) -> dict[str, Any]:
        """Return the inputs of one choice."""
        return {**self.inputs, "seed": (self.seed + number) % (MAX_SEED + 1), **more}


def read_sampling(fields: Fields, *, default_tokens: int) -> dict[str, Any]:
    """Return the inputs that say how to choose tokens; raises ApiError."""
    for name in ("frequency_penalty", "presence_penalty"):
        if fields.number(name, -2, 2, 0) != 0:
            raise bad_request(
                name,
                "expected 0: this service has no such penalty, but takes a repetition_penalty "
                "(1 is off), which scales by seen or not seen",
                "unsupported_value",
            )
    if fields.object("logit_bias"):
        raise bad_request("logit_bias", "expected none: it is not supported", "unsupported_value")
    inputs = {
        "max_new_tokens": fields.whole("max_tokens", 1, MAX_TOKENS, default_tokens),
        "min_new_tokens": fields.whole("min_tokens", -1, MAX_TOKENS, -1),
        "temperature": fields.number("temperature", 0, 5, 1),
        "top_p": fields.number("top_p", 0, 1, 1),
        "top_k": fields.whole("top_k", -1, MAX_TOKENS, -1),
        "repetition_penalty": fields.number("repetition_penalty", 0, 100, 1),
    }
    stop = fields.get("stop")
    if stop:
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, list) or not all(isinstance(item, str) for item in stops):
            raise fields.refuse("stop", "a text or a list of texts")
        inputs["stop_sequences"] = json.dumps(stops)
    return inputs


def read_request(
    fields: Fields,
    inputs: dict[str, Any],
    *,
    has_logprobs: bool,
    ignored: tuple[str, ...] = (),
) -> GenerationRequest:
    """Return a request with these inputs; raises ApiError."""
    options = Fields(
        fields.object("stream_options"), ("include_usage", "include_obfuscation"), "stream_options."
    )
    seed = fields.whole("seed", -(2**63), 2**63 - 1, -1)
    return GenerationRequest(
        model=fields.required_text("model"),
        inputs=inputs,
        seed=secrets.randbelow(MAX_SEED) if "seed" not in fields else seed % (MAX_SEED + 1),
        num_choices=fields.whole("n", 1, MAX_CHOICES, 1),
        is_streamed=fields.flag("stream"),
        has_usage=options.flag("include_usage"),
        has_logprobs=has_logprobs,
        ignored=tuple(name for name in ignored if name in fields),
    )
