"""The body of completions."""

from dataclasses import dataclass
from typing import Any

from src.service.openai.errors import bad_request
from src.service.openai.fields import Fields
from src.service.openai.generation.request import (
    SAMPLING,
    WITHOUT_EFFECT,
    GenerationRequest,
    read_request,
    read_sampling,
)

KNOWN = SAMPLING | WITHOUT_EFFECT | {"prompt", "best_of", "echo", "suffix"}
DEFAULT_TOKENS = 16
MAX_LOGPROBS = 20
MAX_PROMPTS = 64


@dataclass(frozen=True)
class CompletionRequest:
    """A request for what follows each of some prompts."""

    generation: GenerationRequest
    prompts: tuple[str, ...]


def read_completion_request(body: dict[str, Any]) -> CompletionRequest:
    """Return what a body asks for; raises ApiError that names the field that cannot be meant."""
    fields = Fields(body, KNOWN)
    for name in ("echo", "suffix"):
        if fields.get(name):
            raise bad_request(name, "not supported", "unsupported_parameter")
    prompt = fields.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if (
        not isinstance(prompts, list)
        or not 1 <= len(prompts) <= MAX_PROMPTS
        or not all(isinstance(item, str) and item for item in prompts)
    ):
        raise fields.refuse("prompt", f"a text, or a list of up to {MAX_PROMPTS} texts")
    inputs = read_sampling(fields, default_tokens=DEFAULT_TOKENS)
    has_logprobs = "logprobs" in fields
    if has_logprobs:
        inputs["logprobs"] = fields.whole("logprobs", 0, MAX_LOGPROBS, 0)
    generation = read_request(fields, inputs, has_logprobs=has_logprobs)
    if fields.whole("best_of", 1, 20, generation.num_choices) != generation.num_choices:
        raise fields.refuse("best_of", "the same number as n")
    return CompletionRequest(generation, tuple(prompts))
