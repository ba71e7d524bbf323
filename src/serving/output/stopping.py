"""Stop sequences: the text ends before the first one, and no part of one is ever shown."""

import json
from collections.abc import Sequence
from functools import lru_cache

from src.errors import UserError

MAX_SEQUENCES = 64
MAX_CHARACTERS = 1000
MAX_LIST_CHARACTERS = 1_000_000
"""As many as that can take in JSON, where one character may be written as twelve."""


def parse_stop_sequences(text: str) -> tuple[str, ...]:
    """Read a comma-separated list, or a JSON list of strings; empty sequences count for nothing.

    Raises UserError for more or longer sequences than are served.
    """
    if len(text) > MAX_LIST_CHARACTERS:
        raise UserError(
            f"stop_sequences: expected at most {MAX_LIST_CHARACTERS:,} characters in all, "
            f"found {len(text):,}"
        )
    sequences = _read_json_list(text)
    if sequences is None:
        sequences = text.split(",")
    sequences = [sequence for sequence in sequences if sequence]
    if len(sequences) > MAX_SEQUENCES:
        raise UserError(
            f"stop_sequences: expected at most {MAX_SEQUENCES} sequences, found {len(sequences):,}"
        )
    longest = max(map(len, sequences), default=0)
    if longest > MAX_CHARACTERS:
        raise UserError(
            f"stop_sequences: expected at most {MAX_CHARACTERS} characters each, found {longest:,}"
        )
    return tuple(sequences)


def _read_json_list(text: str) -> list[str] | None:
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None  # such as "[INST],foo"
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError("stop_sequences: expected a JSON list of strings, found other values in it")
    return value


class StopBuffer:
    """Hands text on once it can be no part of a stop sequence any more."""

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = [(sequence, _fallbacks(sequence)) for sequence in sequences]
        self._matched = [0] * len(sequences)
        """Of each sequence, how many characters of its beginning end the text so far."""
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Return (text that is sure to stand, whether a stop sequence is complete).

        Of several, the one that is complete first counts, and of those the one that began first.
        """
        text = self._held + piece
        for end, character in enumerate(piece, len(self._held) + 1):
            longest = 0
            for number, (sequence, fallbacks) in enumerate(self._sequences):
                matched = self._matched[number]
                while matched >= 0 and sequence[matched] != character:
                    matched = fallbacks[matched]
                self._matched[number] = matched + 1
                if matched + 1 == len(sequence):
                    longest = max(longest, len(sequence))
            if longest:
                self._held, self._matched = "", [0] * len(self._sequences)
                return text[: end - longest], True
        held = max(self._matched, default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """Return the text still held back, when there is no more to come."""
        text, self._held = self._held, ""
        return text


@lru_cache(MAX_SEQUENCES)
def _fallbacks(sequence: str) -> tuple[int, ...]:
    """Return where a match goes on that breaks after each number of characters; -1 is nowhere.

    It is the table of Knuth, Morris and Pratt: the longest beginning that is also an end of what
    was matched, and that does not break in the same way.
    """
    fallbacks, border = [-1], 0
    for character in sequence[1:]:
        same = sequence[border] == character
        fallbacks.append(fallbacks[border] if same else border)
        while border >= 0 and sequence[border] != character:
            border = fallbacks[border]
        border += 1
    return tuple(fallbacks)
