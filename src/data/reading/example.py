"""What there is to learn from one row."""

from dataclasses import dataclass

from src.chat.conversation import Conversation


@dataclass(frozen=True)
class TextExample:
    """Every token is a target."""

    text: str


@dataclass(frozen=True)
class CompletionExample:
    """The completion is the target."""

    prompt: str
    completion: str
    system: str | None = None


@dataclass(frozen=True)
class ChatExample:
    """The assistant's messages are targets, but for those with weight 0."""

    conversation: Conversation


Example = TextExample | CompletionExample | ChatExample
