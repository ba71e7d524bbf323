"""An answer's text to content, reasons and calls of tools, whole or as it is streamed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from src.service.openai.parsing.call_writer import CallWriter
from src.service.openai.parsing.deltas import (
    CallArguments,
    CallStart,
    Content,
    Delta,
    Reasoning,
)
from src.service.openai.parsing.family import Family
from src.service.openai.parsing.reader import Parse, Reader
from src.service.openai.parsing.reasoning import read_reasoning


class AnswerParser:
    """Takes text in pieces of any length; no part of a mark is ever shown.

    Without tools an answer has no calls, and without marks of reasons it stays as it is.
    """

    def __init__(self, family: Family, tools: Sequence[dict[str, Any]] = ()) -> None:
        self._reader = Reader()
        self._deltas = _read_answer(self._reader, family, tools)

    def push(self, text: str) -> list[Delta]:
        """Return what a piece of text makes sure."""
        self._reader.text += text
        return list(self._until_more_is_needed())

    def finish(self) -> list[Delta]:
        """Return what is left when there is no more text to come."""
        self._reader.is_over = True
        return [delta for delta in self._deltas if delta is not None]

    def _until_more_is_needed(self) -> Iterator[Delta]:
        for delta in self._deltas:
            if delta is None:
                return
            yield delta


@dataclass
class ToolCall:
    """A whole call; its arguments are what the model wrote as JSON."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Answer:
    """What an answer's deltas add up to."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        """Take the next delta."""
        match delta:
            case Content(text):
                self.content += text
            case Reasoning(text):
                self.reasoning += text
            case CallStart(_, id_, name):
                self.calls.append(ToolCall(id_, name))
            case CallArguments(index, text):
                self.calls[index].arguments += text


def parse_answer(text: str, family: Family, tools: Sequence[dict[str, Any]] = ()) -> Answer:
    """Return the parts of a whole answer."""
    parser, answer = AnswerParser(family, tools), Answer()
    for delta in [*parser.push(text), *parser.finish()]:
        answer.add(delta)
    return answer


def _read_answer(reader: Reader, family: Family, tools: Sequence[dict[str, Any]]) -> Parse[None]:
    if family.reasoning is not None:
        yield from read_reasoning(reader, family.reasoning, is_open=family.begins_in_reasoning)
    if tools and family.read_calls is not None:
        yield from family.read_calls(reader, CallWriter(tools, family.new_call_id))
    yield from reader.until(make=Content)
