"""The reasons that a model writes before its answer."""

from dataclasses import dataclass

from src.service.openai.parsing.deltas import Reasoning
from src.service.openai.parsing.reader import Parse, Reader


@dataclass(frozen=True)
class ReasoningMarks:
    """What a model writes around its reasons."""

    opening: str
    closing: str


THINK = ReasoningMarks("<think>", "</think>")
BRACKETS = ReasoningMarks("[THINK]", "[/THINK]")
"""Of Mistral's models."""


def read_reasoning(reader: Reader, marks: ReasoningMarks, *, is_open: bool) -> Parse[bool]:
    """Read the reasons at the beginning of an answer; return whether there were any.

    With `is_open` the prompt ends in the opening mark; the model may write it once more.
    """
    has_opening = yield from _take_opening(reader, marks.opening)
    if not (has_opening or is_open):
        return False
    yield from reader.next_character()
    if (yield from reader.until(marks.closing, make=Reasoning)):
        yield from reader.next_character()
    return True


def _take_opening(reader: Reader, opening: str) -> Parse[bool]:
    # White space before an answer without reasons belongs to the answer.
    while True:
        text = reader.text.lstrip()
        if text.startswith(opening):
            reader.take(len(reader.text) - len(text) + len(opening))
            return True
        if reader.is_over or not opening.startswith(text):
            return False
        yield None
