"""Which tokens each slot's keys and values belong to, so that a conversation is not read twice."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

SHORTEST = 8
"""Fewer tokens than this are read again rather than kept."""


@dataclass
class _Known:
    key: str | None
    ids: list[int]
    used_at: int


@dataclass(frozen=True)
class Move:
    """A copy between slots."""

    source: int
    target: int
    num_tokens: int


class PrefixCache:
    """What slots hold, by adapter and token ids: another adapter's tokens are never a match."""

    def __init__(self, num_slots: int, *, is_on: bool = True) -> None:
        self._is_on = is_on
        self._known = [_Known(None, [], 0) for _ in range(num_slots)]
        self._clock = itertools.count(1)

    def place(
        self, target: int, free: Sequence[int], key: str | None, prompt_ids: Sequence[int]
    ) -> tuple[list[Move], int]:
        """Make the target slot this prompt's; return what to copy, and how much is known already.

        What the target held is moved to the free slot that was used longest ago. The last token of
        a prompt is always read, because its scores are wanted.
        """
        if not self._is_on:
            return [], 0
        matches = [
            _common(known.ids, prompt_ids[:-1]) if known.key == key else 0 for known in self._known
        ]
        source = max(range(len(matches)), key=lambda slot: (matches[slot], slot == target))
        num_known = matches[source] if matches[source] >= SHORTEST else 0
        moves = []
        if num_known and source != target:
            moves.append(Move(source, target, num_known))
        old = self._known[target]
        is_kept = len(old.ids) >= SHORTEST and not (source == target and num_known == len(old.ids))
        others = [slot for slot in free if slot != target and slot != source]
        if is_kept and others:
            refuge = min(others, key=lambda slot: self._known[slot].used_at)
            if self._known[refuge].used_at < old.used_at:
                moves.insert(0, Move(target, refuge, len(old.ids)))
                self._known[refuge] = old
        self._known[target] = _Known(key, list(prompt_ids[:num_known]), next(self._clock))
        return moves, num_known

    def append(self, slot: int, ids: Sequence[int]) -> None:
        """Say that the slot holds these tokens after what it held."""
        self._known[slot].ids += ids

    def forget(self, slot: int) -> None:
        """Say that what the slot holds is not to be trusted."""
        self._known[slot] = _Known(None, [], 0)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many first tokens two sequences share."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
