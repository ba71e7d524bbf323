"""What is read of one prompt in one pass."""

from typing import NamedTuple


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
