"""What an answer took, from the metrics that the engine reports of each request."""

from collections.abc import Sequence
from typing import Any

Metrics = dict[str, Any]
_FINISH_REASONS = {"end": "stop", "stop": "stop", "length": "length"}


def add_usage(metrics: Sequence[Sequence[Metrics]]) -> dict[str, Any]:
    """Return the tokens of all choices of each prompt together; a prompt counts once."""
    prompts = [choices for choices in metrics if choices]
    num_prompt = sum(_count(choices[0], "input_token_count") for choices in prompts)
    num_cached = sum(_count(choices[0], "cached_input_token_count") for choices in prompts)
    num_output = sum(_count(one, "output_token_count") for choices in prompts for one in choices)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
        "prompt_tokens_details": {"cached_tokens": num_cached},
    }


def finish_reason(metrics: Metrics, *, has_calls: bool = False) -> str:
    """Return why an answer ended, in OpenAI's words."""
    reason = _FINISH_REASONS.get(metrics.get("finish_reason", ""), "stop")
    return "tool_calls" if has_calls and reason == "stop" else reason


def chat_logprobs(metrics: Metrics) -> dict[str, Any]:
    """Return the scores of an answer's tokens in the form of chat/completions."""
    return {"content": [_scored(token) for token in _tokens(metrics)], "refusal": None}


def completion_logprobs(metrics: Metrics) -> dict[str, Any]:
    """Return the scores of an answer's tokens in the form of completions."""
    tokens = _tokens(metrics)
    places, length = [], 0
    for token in tokens:
        places.append(length)
        length += len(token["token"])
    best = [{top["token"]: top["logprob"] for top in token["top"]} for token in tokens]
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": best if any(best) else None,
        "text_offset": places,
    }


def _count(metrics: Metrics, name: str) -> int:
    return int(metrics.get(name, 0))


def _tokens(metrics: Metrics) -> list[dict[str, Any]]:
    answers = metrics.get("logprobs") or [[]]
    return answers[0]


def _scored(token: dict[str, Any]) -> dict[str, Any]:
    return {**_with_bytes(token), "top_logprobs": [_with_bytes(top) for top in token["top"]]}


def _with_bytes(token: dict[str, Any]) -> dict[str, Any]:
    text = token["token"]
    return {"token": text, "logprob": token["logprob"], "bytes": list(text.encode())}
