"""The segments of text that a model reads, and what makes them of a conversation."""

from dataclasses import dataclass
from typing import Protocol

from src.chat.conversation import Conversation

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
    is_target: bool = False
    continues: bool = False
    """True where the text goes on from what stands before it, as an answer does."""
    ends: bool = False
    """True where the model should end its turn after this text."""


Segment = Control | Text


class PromptFormat(Protocol):
    """The way one base model is spoken to."""

    @property
    def answer_prefix(self) -> str:
        """What stands between prompt and answer and belongs to neither."""
        ...

    @property
    def uses_inst_tags(self) -> bool:
        """Whether a prompt may hold a conversation in [INST] tags."""
        ...

    def segments(self, conversation: Conversation, *, num_target_turns: int = 0) -> list[Segment]:
        """Return the conversation as segments; the last `num_target_turns` answers are targets."""
        ...
