"""Stop sequences: the text ends before the first one, and no part of one is ever shown."""

import json
from collections.abc import Sequence

from src.errors import UserError

MAX_SEQUENCES = 64
MAX_CHARACTERS = 1000


def parse_stop_sequences(text: str | None) -> tuple[str, ...]:
    """Read a comma-separated list, or a JSON list of strings; empty sequences count for nothing.

    Raises UserError for more or longer sequences than are served.
    """
    if not text:
        return ()
    if text.count(",") > MAX_SEQUENCES * MAX_CHARACTERS or len(text) > 1_000_000:
        raise UserError(f"stop_sequences: expected at most {MAX_SEQUENCES} sequences, found more")
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
        self._sequences = sequences
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Return (text that is sure to stand, whether a stop sequence is complete).

        Of several, the one that is complete first counts, and of those the one that began first.
        """
        text = self._held + piece
        found = [
            (start + len(sequence), start)
            for sequence in self._sequences
            if (start := text.find(sequence)) >= 0
        ]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        held = max((_overlap(text, sequence) for sequence in self._sequences), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """Return the text still held back, when there is no more to come."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, sequence: str) -> int:
    """Return how many characters at the end of the text begin the sequence."""
    longest = min(len(text), len(sequence) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(sequence[:n])), 0)
