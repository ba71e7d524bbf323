"""Which tokens each slot's keys and values belong to, so that a conversation is not read twice."""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SHORTEST = 8
"""Fewer tokens than this are read again rather than kept."""


@dataclass
class _Known:
    key: str | None
    ids: np.ndarray
    used_at: int


class Move(NamedTuple):
    """A copy between slots."""

    source: int
    target: int
    num_tokens: int


class PrefixCache:
    """What slots hold, by adapter and token ids: another adapter's tokens are never a match."""

    def __init__(self, num_slots: int, *, is_on: bool = True) -> None:
        self._is_on = is_on
        self._known = [_nothing() for _ in range(num_slots)]
        self._clock = itertools.count(1)

    def place(
        self, target: int, free: list[int], key: str | None, prompt_ids: list[int]
    ) -> tuple[list[Move], int]:
        """Make the target slot this prompt's; return what to copy, and how much is known already.

        What the target held is moved to the free slot that was used longest ago. The last token of
        a prompt is always read, because its scores are wanted.
        """
        if not self._is_on:
            return [], 0
        wanted = np.array(prompt_ids[:-1], dtype=np.int32)
        matches = [
            _common_prefix(known.ids, wanted) if known.key == key else 0 for known in self._known
        ]
        source = max(range(len(matches)), key=lambda slot: (matches[slot], slot == target))
        num_known = matches[source] if matches[source] >= SHORTEST else 0
        moves = []
        if num_known and source != target:
            moves.append(Move(source, target, num_known))
            self._known[source].used_at = next(self._clock)
        old = self._known[target]
        is_kept = len(old.ids) >= SHORTEST and not (source == target and num_known == len(old.ids))
        others = [slot for slot in free if slot != target and slot != source]
        if is_kept and others:
            refuge = min(others, key=lambda slot: self._known[slot].used_at)
            if self._known[refuge].used_at < old.used_at:
                moves.insert(0, Move(target, refuge, len(old.ids)))
                self._known[refuge] = old
        self._known[target] = _Known(key, wanted[:num_known], next(self._clock))
        return moves, num_known

    def extend(self, slot: int, ids: list[int]) -> None:
        """Say that the slot holds these tokens after what it held."""
        known = self._known[slot]
        known.ids = np.append(known.ids, np.array(ids, dtype=np.int32))

    def forget(self, slot: int) -> None:
        """Say that what the slot holds is not to be trusted."""
        self._known[slot] = _nothing()


def _nothing() -> _Known:
    return _Known(None, np.empty(0, dtype=np.int32), 0)


def _common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """Return how many first tokens two sequences share."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length
