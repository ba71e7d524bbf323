"""Text that comes in pieces, for parsers that are written as if it lay there whole."""

from collections.abc import Callable, Generator
from typing import TypeVar

from src.service.openai.parsing.deltas import Delta
from src.service.openai.parsing.json_value import JsonEnd

Result = TypeVar("Result")
Parse = Generator[Delta | None, None, Result]
"""A parser: it yields deltas, and None where it needs more text or to know that there is none."""
Make = Callable[[str], Delta]


class Reader:
    """The text that no parser has taken yet.

    What a parser yields is the same however the text is cut into pieces.
    """

    def __init__(self) -> None:
        self.text = ""
        self.is_over = False
        """Whether no more text comes."""

    def take(self, length: int) -> str:
        """Remove and return the beginning of the text."""
        taken, self.text = self.text[:length], self.text[length:]
        return taken

    def peek(self) -> Parse[str]:
        """Return the next character that is no white space, "" at the end of the text."""
        while not (text := self.text.lstrip()) and not self.is_over:
            yield None
        return text[:1]

    def next_character(self) -> Parse[str]:
        """Skip white space; return the character behind it, "" at the end of the text."""
        character = yield from self.peek()
        self.take_space()
        return character

    def take_space(self) -> str:
        """Remove and return the white space that the text begins with."""
        return self.take(len(self.text) - len(self.text.lstrip()))

    def begins_with(self, mark: str) -> Parse[bool]:
        """Take a mark that stands next; return whether it did."""
        while len(self.text) < len(mark) and mark.startswith(self.text) and not self.is_over:
            yield None
        if not self.text.startswith(mark):
            return False
        self.take(len(mark))
        return True

    def take_until(self, *marks: str) -> Parse[tuple[str, str]]:
        """Return (the text before the first of the marks, that mark); it is "" at the end."""
        while True:
            place, mark = self._find(marks)
            if mark or self.is_over:
                taken = self.take(place)
                self.take(len(mark))
                return taken, mark
            yield None

    def until(self, *marks: str, make: Make) -> Parse[str]:
        """Yield text as it comes, up to the first of the marks; no part of one is ever yielded.

        Returns the mark with the white space before it, or "" at the end of the text.
        """
        while True:
            place, mark = self._find(marks)
            if mark:
                text = self.take(len(self.text[:place].rstrip()))
                mark = self.take(place - len(text) + len(mark))
            elif self.is_over or not marks:
                text = self.take(len(self.text))
            else:
                sure = self.text[: len(self.text) - self._begun(marks)]
                text = self.take(len(sure.rstrip()))
            if text:
                yield make(text)
            if mark or self.is_over:
                return mark
            yield None

    def json_value(self, make: Make | None, *, depth: int = 0) -> Parse[None]:
        """Yield the text of a JSON value as it comes; of one with `depth` open brackets, the rest.

        Without `make` it is left out.
        """
        end = JsonEnd(depth)
        while True:
            length = end.find(self.text)
            text = self.take(len(self.text) if length is None else length)
            if text and make:
                yield make(text)
            if length is not None or self.is_over:
                return
            yield None

    def _find(self, marks: tuple[str, ...]) -> tuple[int, str]:
        found = [(place, mark) for mark in marks if (place := self.text.find(mark)) >= 0]
        return min(found, default=(len(self.text), ""))

    def _begun(self, marks: tuple[str, ...]) -> int:
        """Return how many characters at the end may be the beginning of a mark."""
        longest = min(max(map(len, marks)) - 1, len(self.text))
        ends = (length for length in range(longest, 0, -1))
        return next((n for n in ends if any(mark.startswith(self.text[-n:]) for mark in marks)), 0)
