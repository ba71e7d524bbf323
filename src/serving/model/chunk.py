"""What is read of one prompt in one pass."""

from collections.abc import Iterator
from typing import NamedTuple


class ChunkToken(NamedTuple):
    """One of its tokens."""

    id: int
    slot: int
    position: int
    text_length: int
    """Of all that is read before the next token is drawn."""
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
    num_after: int = 0
    """Tokens that are read in later passes, before the next one is drawn."""

    @property
    def stop(self) -> int:
        """The position after the last."""
        return self.start + len(self.ids)

    def tokens(self) -> Iterator[ChunkToken]:
        """Return its tokens, one after the other."""
        first_scored, text_length = self.stop - self.num_scores, self.stop + self.num_after
        for position, token in enumerate(self.ids, self.start):
            is_scored = position >= first_scored
            yield ChunkToken(token, self.slot, position, text_length, self.lora_slot, is_scored)
