"""What an answer is made of, in pieces as they are streamed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Content:
    """Text for the reader of the answer."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """Text of the reasons that the model writes before its answer."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """The beginning of a call of a tool."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """The next piece of a call's arguments, which together are a JSON object."""

    index: int
    text: str


Delta = Content | Reasoning | CallStart | CallArguments
