"""What was said so far, as messages."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

Message = dict[str, Any]
"""`role` (system, user, assistant or tool) and `content`, as OpenAI's clients send them.

An assistant's may have `reasoning_content` and `tool_calls`; with `weight` 0 it is not learned.
"""


@dataclass(frozen=True)
class Conversation:
    """Messages in order, with the tools that the model may call.

    Where the last message is the assistant's, it is begun, and the model should go on with it.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, *contents: str, system: str = "") -> "Conversation":
        """Return the conversation in which user and assistant said these in turn."""
        said = zip(cycle(("user", "assistant")), contents, strict=False)
        messages = [{"role": role, "content": content} for role, content in said]
        return cls(tuple(messages)).with_system(system)

    @property
    def is_begun(self) -> bool:
        """Whether the last message is an answer that the model should go on with."""
        return self.messages[-1]["role"] == "assistant"

    @property
    def system(self) -> str | None:
        """The system message; None where there is none."""
        first = self.messages[0]
        return first["content"] if first["role"] == "system" else None

    def with_system(self, system: str) -> "Conversation":
        """Return it with a system message, where it has none of its own; "" is none."""
        if self.system is None and system:
            said = ({"role": "system", "content": system}, *self.messages)
            return replace(self, messages=said)
        return replace(self, messages=self.messages[1:]) if self.system == "" else self

    def until(self, number: int) -> "Conversation":
        """Return its first `number` messages."""
        return replace(self, messages=self.messages[:number])

    def and_then(self, messages: Iterable[Message]) -> "Conversation":
        """Return it with more messages."""
        return replace(self, messages=(*self.messages, *messages))


def reasoning_of(message: Message) -> str:
    """Return the reasons that a message gives before its answer; "" for none."""
    return message.get("reasoning_content") or message.get("reasoning") or ""


def write_calls(message: Message, form: tuple[str | None, bool]) -> Message:
    """Return a message with its calls of tools as a template reads them.

    `form` is what stands for a missing content, and whether arguments are JSON text.
    """
    if not message.get("tool_calls"):
        return message
    no_content, is_text = form

    def read(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        arguments = function.get("arguments", {})
        if is_text and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        elif isinstance(arguments, str) and not is_text:
            arguments = json.loads(arguments)
        return {"type": "function", **call, "function": {**function, "arguments": arguments}}

    calls = [read(call) for call in message["tool_calls"]]
    return {**message, "content": message.get("content") or no_content, "tool_calls": calls}
