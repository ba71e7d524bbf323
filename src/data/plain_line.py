"""Tells at a glance that a line is a good example; what is not plainly good is read with care."""

from typing import Literal

import msgspec

from src.data.large_line import LARGE_LINE_BYTES


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    content: str


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    text: str = ""
    prompt: str | None = None
    completion: str = ""
    messages: list[_Message] = []


_decode = msgspec.json.Decoder(_Line).decode


def is_plainly_good(line: bytes) -> bool:
    """Tell whether a line is an example with the keys of its kind and no others, each once."""
    if len(line) > LARGE_LINE_BYTES:
        return False
    try:
        found = _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    messages = found.messages
    if found.text:
        num_strings = 2
    elif found.completion and found.prompt is not None:
        num_strings = 4
    elif messages and _take_turns(messages):
        num_strings = 1 + 4 * len(messages)
    else:
        return False
    # Of a key that comes twice only the last is found: the line has more quotes than what is found.
    more = line.count(b'"') - 2 * num_strings
    return more == 0 or (more == _num_quotes(found) and b"\\u0022" not in line)


def _take_turns(messages: list[_Message]) -> bool:
    """Whether user and assistant take turns up to an answer, after at most one system message."""
    first = messages[0].role == "system"
    num_turns = len(messages) // 2
    return (
        num_turns > 0
        and [message.role for message in messages[first:]] == ["user", "assistant"] * num_turns
        and "" not in [message.content for message in messages[first + 1 :: 2]]
    )


def _num_quotes(found: _Line) -> int:
    """Return how many of the line's quotes are part of a text."""
    texts = [found.text, found.prompt or "", found.completion]
    return sum(text.count('"') for text in texts + [m.content for m in found.messages])
