"""Server-sent events, in the form in which every client of Replicate reads all of the text."""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

KEEP_ALIVE = b": still running\n\n"
# Where str.splitlines() ends a line and the standard does not. httpx, below replicate-python, does.
_LINE_ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
_PIECE = re.compile(f"[^{_LINE_ENDS}]*[{_LINE_ENDS}]|[^{_LINE_ENDS}]+")


@dataclass(frozen=True)
class Event:
    """What a run tells those who follow it."""

    name: Literal["output", "logs", "error", "done"]
    text: str
    """A chunk, the sentence of an error, or why a run is done if it did not succeed."""
    at: float
    """Unix seconds."""


async def stream(
    batches: AsyncGenerator[Sequence[Event]], *, last_event_id: str | None = None
) -> AsyncIterator[bytes]:
    """Yield the body of an answer for events from the first one on, as they come.

    Those up to `last_event_id` are left out. A comment stands for a batch without any.
    """
    encoder = Encoder(after=number_of(last_event_id))
    async with aclosing(batches):
        async for events in batches:
            if not events:
                yield KEEP_ALIVE
            elif encoded := b"".join(map(encoder.encode, events)):
                yield encoded


class Encoder:
    """Numbers the events of one run: the same events always get the same ids."""

    def __init__(self, *, after: int = -1) -> None:
        self._after = after
        self._number = -1
        self._ends_in_return: dict[str, bool] = {}

    def encode(self, event: Event) -> bytes:
        """Return an event's bytes, without those up to the number that it began after."""
        encoded = []
        for data in self._data(event):
            self._number += 1
            if self._number > self._after:
                encoded.append(_frame(event, self._number, data))
        return "".join(encoded).encode(errors="replace")

    def _data(self, event: Event) -> Iterator[str]:
        if event.name == "error":
            yield json.dumps({"detail": event.text})
        elif event.name == "done":
            yield json.dumps({"reason": event.text} if event.text else {})
        else:
            yield from pieces(self._with_line_feeds(event))

    def _with_line_feeds(self, event: Event) -> str:
        """Return the text with the only line ends that an event can hold."""
        text = event.text
        if self._ends_in_return.get(event.name) and text:
            text = text.removeprefix("\n")
        if event.text:
            self._ends_in_return[event.name] = event.text.endswith("\r")
        return text.replace("\r\n", "\n").replace("\r", "\n")


def pieces(text: str) -> Iterator[str]:
    """Cut a text where replicate-python would lose what follows, or take it for a file.

    Of a piece that ends in one of its line ends it loses that character alone.
    """
    for piece in _PIECE.findall(text):
        if piece.startswith(("https:", "data:")):
            yield piece[0]
            piece = piece[1:]
        yield piece


def number_of(event_id: str | None) -> int:
    """Return an event's number by its id; -1, before the first one, for what is no id."""
    match = re.fullmatch(r"\d+:(\d{1,18})", event_id or "", re.ASCII)
    return int(match[1]) if match else -1


def _frame(event: Event, number: int, data: str) -> str:
    # The data come last: what replicate-python takes for the end of a line then ends the event.
    lines = "\n".join(f"data: {line}" for line in data.split("\n"))
    return f"event: {event.name}\nid: {int(event.at)}:{number}\n{lines}\n\n"
