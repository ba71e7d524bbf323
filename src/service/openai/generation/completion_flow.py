"""A completion request through the engine: its texts whole, or chunk by chunk."""

from collections.abc import AsyncIterator
from typing import Any

from src.service.openai.generation.choices import Choices
from src.service.openai.generation.completion_request import CompletionRequest
from src.service.openai.generation.usage import (
    Metrics,
    add_usage,
    completion_logprobs,
    finish_reason,
)

Shape = dict[str, Any]


class CompletionTexts:
    """What follows each prompt, `num_choices` times each."""

    def __init__(self, request: CompletionRequest, head: Shape) -> None:
        self._request = request
        self._head = {**head, "object": "text_completion"}
        num_texts = len(request.prompts) * request.generation.num_choices
        self._texts = [""] * num_texts
        self._metrics: list[Metrics] = [{} for _ in range(num_texts)]

    async def whole(self, choices: Choices) -> Shape:
        """Return the whole answer; raises ApiError where the engine fails."""
        async for number, message in choices.messages():
            self._take(number, message)
        written = [self._choice(number, text, True) for number, text in enumerate(self._texts)]
        return {**self._head, "choices": written, "usage": self._usage()}

    async def chunks(self, choices: Choices) -> AsyncIterator[Shape]:
        """Yield the events of a stream; raises ApiError where the engine fails."""
        has_usage = self._request.generation.has_usage
        head = {**self._head, "usage": None} if has_usage else self._head
        async for number, message in choices.messages():
            self._take(number, message)
            if message["event"] == "output":
                yield {**head, "choices": [self._choice(number, message["text"], False)]}
            elif message["event"] == "end":
                yield {**head, "choices": [self._choice(number, "", True)]}
        if has_usage:
            yield {**self._head, "choices": [], "usage": self._usage()}

    def _take(self, number: int, message: dict[str, Any]) -> None:
        if message["event"] == "output":
            self._texts[number] += message["text"]
        elif message["event"] == "end":
            self._metrics[number] = message["metrics"]

    def _choice(self, number: int, text: str, has_ended: bool) -> Shape:
        metrics = self._metrics[number]
        has_logprobs = has_ended and self._request.generation.has_logprobs
        return {
            "index": number,
            "text": text,
            "logprobs": completion_logprobs(metrics) if has_logprobs else None,
            "finish_reason": finish_reason(metrics) if has_ended else None,
        }

    def _usage(self) -> Shape:
        size = self._request.generation.num_choices
        starts = range(0, len(self._metrics), size)
        return add_usage([self._metrics[start : start + size] for start in starts])
