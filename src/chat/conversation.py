"""What was said so far: the turns of a conversation."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """What the user said, and the answer to it where there is one."""

    user: str
    answer: str | None = None


@dataclass(frozen=True)
class Conversation:
    turns: Sequence[Turn]
    system: str = ""
    is_open: bool = False
    """True where the last answer is only begun and the model should go on with it."""
