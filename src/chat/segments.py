"""The segments of text that a model reads."""

from dataclasses import dataclass

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
