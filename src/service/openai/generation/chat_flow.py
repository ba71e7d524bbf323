"""A chat request through the engine: its answers whole, or chunk by chunk."""

from collections.abc import AsyncIterator
from typing import Any

from src.service.openai.generation.chat_answer import (
    write_choice,
    write_chunk,
    write_completion,
    write_delta,
)
from src.service.openai.generation.chat_request import ChatRequest
from src.service.openai.generation.choices import Choices
from src.service.openai.generation.usage import Metrics, add_usage, chat_logprobs, finish_reason
from src.service.openai.parsing.answer import Answer, AnswerParser
from src.service.openai.parsing.deltas import CallArguments, CallStart, Delta
from src.service.openai.parsing.family import Family

Shape = dict[str, Any]


class ChatAnswers:
    """The answers to one request, as they grow."""

    def __init__(self, request: ChatRequest, family: Family, head: Shape) -> None:
        self._request, self._head = request, head
        numbers = range(request.generation.num_choices)
        family = request.read_by(family)
        self._parsers = [AnswerParser(family, request.tool_choice.tools) for _ in numbers]
        self._answers = [Answer() for _ in numbers]
        self._metrics: list[Metrics] = [{} for _ in numbers]

    async def whole(self, choices: Choices) -> Shape:
        """Return the whole answer; raises ApiError where the engine fails."""
        async for _ in self._follow(choices):
            pass
        written = [
            write_choice(number, answer, self._reason(number), self._logprobs(number))
            for number, answer in enumerate(self._answers)
        ]
        return write_completion(self._head, written, self._usage())

    async def chunks(self, choices: Choices) -> AsyncIterator[Shape]:
        """Yield the events of a stream; raises ApiError where the engine fails."""
        has_usage = self._request.generation.has_usage
        head = {**self._head, "usage": None} if has_usage else self._head
        for number in range(len(self._answers)):
            yield write_chunk(head, number, {"role": "assistant", "content": ""})
        async for number, delta in self._follow(choices):
            if delta is not None:
                yield write_chunk(head, number, write_delta(delta))
                continue
            # The engine tells scores at the end of an answer.
            if logprobs := self._logprobs(number):
                yield write_chunk(head, number, {"content": ""}, logprobs=logprobs)
            yield write_chunk(head, number, {}, reason=self._reason(number))
        if has_usage:
            last = {"object": "chat.completion.chunk", "choices": [], "usage": self._usage()}
            yield {**self._head, **last}

    async def _follow(self, choices: Choices) -> AsyncIterator[tuple[int, Delta | None]]:
        """Yield each (choice, delta), and None at the end of a choice."""
        async for number, message in choices.messages():
            parser = self._parsers[number]
            match message["event"]:
                case "output":
                    deltas = parser.push(message["text"])
                case "end":
                    self._metrics[number] = message["metrics"]
                    deltas = parser.finish()
                case _:
                    continue
            for delta in deltas:
                is_call = isinstance(delta, CallStart | CallArguments)
                if is_call and delta.index > 0 and self._request.is_one_call:
                    continue
                self._answers[number].add(delta)
                yield number, delta
            if message["event"] == "end":
                yield number, None

    def _reason(self, number: int) -> str:
        # A call that was asked for by name ends as any answer does.
        is_named = self._request.tool_choice.only is not None
        has_calls = bool(self._answers[number].calls) and not is_named
        return finish_reason(self._metrics[number], has_calls=has_calls)

    def _logprobs(self, number: int) -> Shape | None:
        has_logprobs = self._request.generation.has_logprobs
        return chat_logprobs(self._metrics[number]) if has_logprobs else None

    def _usage(self) -> Shape:
        return add_usage([self._metrics])
