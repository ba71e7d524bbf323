"""The prompts that wait for a slot and that are read, and how many tokens of them a step reads."""

import statistics
import time
from collections import deque
from collections.abc import Callable

from src.serving.engine.batch import Batch
from src.serving.engine.request import Sequence

MAX_OVERTAKEN_SECONDS = 5.0
"""How long others may overtake a sequence whose adapter finds no room on the device."""
TOKENS_ALONE = 4096
"""Tokens of prompts that one pass reads where no answer runs."""
FEWEST, FIRST, MOST = 8, 16, 2048
"""Tokens that it reads where answers wait for it."""
SLOWDOWN = 2.0
"""A step that reads prompts too may take so many times as long as one that does not."""
NUM_KNOWN = 15
"""Steps that the length of a usual one is taken from."""
JUMP = 1024
"""Tokens that come so much further on in their text than the last ones cost more than these."""


class WaitingQueue:
    """The first come are admitted first."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.sequences: deque[Sequence] = deque()

    def admit(self, fail: Callable[[Sequence, Exception], None]) -> list[Sequence]:
        """Give slots to those for whom there is room, and return them.

        `fail` is called with each that can never be admitted.
        """
        admitted: list[Sequence] = []
        overtaken: list[Sequence] = []
        # Nobody overtakes a sequence that waits for blocks of the KV cache.
        while self.sequences and self._batch.has_room(self.sequences[0]):
            sequence = self.sequences.popleft()
            try:
                is_admitted = self._batch.add(sequence)
            except Exception as error:
                fail(sequence, error)
                continue
            if is_admitted:
                admitted.append(sequence)
                continue
            overtaken.append(sequence)
            if time.monotonic() - sequence.submitted_at > MAX_OVERTAKEN_SECONDS:
                break
        self.sequences.extendleft(reversed(overtaken))
        return admitted


class PrefillQueue:
    """The first come are read first, several in one pass."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.sequences: deque[Sequence] = deque()
        self.budget = TokenBudget()

    def next_parts(self, preempt: Callable[[Sequence], None]) -> list[tuple[Sequence, int]]:
        """Return how many tokens of which prompts the next pass reads, for which there is room.

        Where nothing else can make room, `preempt` is called with the youngest.
        """
        room = TOKENS_ALONE
        if self._batch.running:
            self.budget.go_on_at(self.sequences[0].num_computed_tokens)
            room = min(self.budget.num_tokens, self._batch.most_beside or MOST)
        parts: list[tuple[Sequence, int]] = []
        for sequence in list(self.sequences):
            num_tokens = min(room, len(sequence.context_ids) - sequence.num_computed_tokens)
            while not (has_room := self._batch.grow(sequence, num_tokens)):
                others = [other for other in self.sequences if other is not sequence]
                if parts or self._batch.running or not others:
                    break
                preempt(max(others, key=lambda other: other.submitted_at))
            room -= num_tokens
            if not has_room:
                break
            parts.append((sequence, num_tokens))
            if room <= 0:
                break
        return parts


class TokenBudget:
    """Follows what steps take: it depends on the device, the model and the rows that run."""

    def __init__(self) -> None:
        self.num_tokens = FIRST
        self._plain: deque[float] = deque(maxlen=NUM_KNOWN)
        self._of_token: deque[float] = deque(maxlen=NUM_KNOWN)
        self._position = 0

    def go_on_at(self, position: int) -> None:
        """Take where in their text the next tokens are: far on they read more of it."""
        if position > self._position + JUMP:
            self._of_token.clear()
            self.num_tokens = FIRST
        self._position = position

    def record(self, num_prompt_tokens: int, seconds: float) -> None:
        """Take what a step took that read so many tokens of prompts beside running answers."""
        self._position += num_prompt_tokens
        if not num_prompt_tokens:
            self._plain.append(seconds)
        elif self._plain and num_prompt_tokens >= FEWEST:
            plain = statistics.median(self._plain)
            self._of_token.append((seconds - plain) / num_prompt_tokens)
            room = (SLOWDOWN - 1) * plain
            of_token = max(statistics.median(self._of_token), room / MOST)
            num_tokens = min(int(room / of_token), 2 * self.num_tokens)
            self.num_tokens = min(max(num_tokens, FEWEST), MOST)
