"""The pieces of text that a model reads, and what makes them of a dialogue."""

from dataclasses import dataclass
from typing import Protocol

from src.chat.conversation import Dialogue

BOS = "<bos>"
EOS = "<eos>"


@dataclass(frozen=True)
class Control:
    """One control token: `BOS`, `EOS`, or the name of a special token of the tokenizer."""

    token: str


@dataclass(frozen=True)
class Text:
    """A run of plain text; nothing in it is ever read as a control token."""

    text: str
    learned: bool = False
    continues: bool = False
    """True where the text goes on from what stands before it, as an answer does."""
    ends: bool = False
    """True where the model should end its turn after this text."""


Piece = Control | Text


class PromptFormat(Protocol):
    """The way one base model is spoken to."""

    @property
    def answer_prefix(self) -> str:
        """What stands between prompt and answer and belongs to neither."""
        ...

    @property
    def uses_inst_tags(self) -> bool:
        """Whether a prompt may be a ready dialogue in [INST] tags."""
        ...

    def pieces(self, dialogue: Dialogue, *, num_learned: int = 0) -> list[Piece]:
        """Return the dialogue as pieces; the last `num_learned` answers are what is learned."""
        ...
