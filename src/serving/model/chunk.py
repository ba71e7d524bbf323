"""What is read of one prompt in one pass."""

from collections.abc import Iterator
from typing import NamedTuple


class ChunkToken(NamedTuple):
    """One of its tokens."""

    id: int
    slot: int
    position: int
    lora_slot: int | None
    is_scored: bool
    """Whether the scores after it are wanted."""


class Chunk(NamedTuple):
    """Consecutive tokens of a slot."""

    slot: int
    ids: list[int]
    start: int
    """The position of the first."""
    lora_slot: int | None
    num_scores: int
    """After so many of its last tokens scores are wanted."""

    @property
    def stop(self) -> int:
        """The position after the last."""
        return self.start + len(self.ids)

    def tokens(self) -> Iterator[ChunkToken]:
        """Return its tokens, one after the other."""
        first_scored = self.stop - self.num_scores
        for position, token in enumerate(self.ids, self.start):
            yield ChunkToken(token, self.slot, position, self.lora_slot, position >= first_scored)
