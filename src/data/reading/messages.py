"""The messages of a conversation, as OpenAI's, ShareGPT's and TRL's users write them."""

from collections.abc import Callable, Iterable
from typing import Any

from src.chat.conversation import Message
from src.data.reading.fields import (
    BadFormError,
    BadValueError,
    Record,
    describe,
    read_text,
    show_keys,
)
from src.data.reading.tools import read_call_text, read_tool_calls

CountUnused = Callable[[Iterable[str]], None]

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai"), "assistant"),
    "function_call": "assistant",
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
}
FOLLOWING = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
"""Who may speak after whom."""
_ADVICE = {
    ("", "assistant"): "; leave this message out, or put what the user said before it",
    ("system", "assistant"): "; leave this message out, or put what the user said before it",
    ("user", "user"): "; join the two messages into one",
    ("assistant", "assistant"): "; join the two messages into one",
}
_READ = {
    "system": (),
    "user": (),
    "assistant": ("weight", "reasoning_content", "reasoning", "tool_calls", "function_call"),
    "tool": ("tool_call_id", "name"),
}
"""What is read beside role and content."""
_ALWAYS_READ = {"role", "from", "content", "value"}


def read_messages(
    messages: Any, count_unused: CountUnused, *, label: str = "messages"
) -> list[Message]:
    """Return the messages of a conversation; raises BadValueError where one cannot be read."""
    if isinstance(messages, str) and messages.lstrip()[:1] in ("[", "{"):
        raise BadFormError(
            f'"{label}": expected a list of messages, found a text that holds one; convert it '
            f"with: jq -c '.{label} |= fromjson' OLD > NEW.jsonl"
        )
    if not isinstance(messages, list) or not messages:
        raise BadValueError(f'"{label}": expected a list of messages, found {describe(messages)}')
    found: list[Message] = []
    before = ""
    for number, message in enumerate(messages):
        where = f"{label}[{number}]"
        if not isinstance(message, dict):
            raise BadValueError(
                f'"{where}": expected {{"role", "content"}}, found {describe(message)}'
            )
        read: Message = {"role": (before := _role(message, where, before))}
        read["content"] = _content(message, f"{where}.")
        if len(message) > 2 or "content" not in message:
            read |= _beside(message, before, f"{where}.", count_unused)
        if message.get("from", message.get("role")) == "function_call":
            read |= {"content": "", "tool_calls": read_call_text(read["content"], where)}
        found.append(read)
    return found


def _role(message: Record, where: str, before: str) -> str:
    key = "role" if "role" in message else "from" if "from" in message else "role"
    written = message.get(key)
    role = ROLES.get(written) if isinstance(written, str) else None
    if role is None or role not in FOLLOWING[before]:
        roles = " or ".join(f'"{name}"' for name in FOLLOWING[before])
        advice = _ADVICE.get((before, role or ""), "")
        found = describe(written) if key in message else f"only {show_keys(message)}"
        sentence = f'"{where}.{key}": expected {roles}, found {found}{advice}'
        if role is None:
            raise BadFormError(sentence, group=found)
        raise BadFormError(sentence) if advice else BadValueError(sentence)
    return role


def _content(message: Record, where: str) -> str:
    key = "value" if "value" in message and "content" not in message else "content"
    content = message.get(key)
    if isinstance(content, list):
        return "".join(_part(part, f"{where}{key}[{n}]") for n, part in enumerate(content))
    calls = message.get("tool_calls") or message.get("function_call")
    if calls and not content:
        return ""
    return read_text(message, key, where)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        part = {"text": part}
    if not isinstance(part, dict):
        raise BadValueError(f'"{where}": expected a part with text, found {describe(part)}')
    kind = part.get("type", "text")
    if kind not in ("text", "input_text", "output_text"):
        raise BadValueError(
            f'"{where}.type": expected "text", the only kind that is read, found {describe(kind)}'
        )
    return read_text(part, "text", f"{where}.")


def _beside(message: Record, role: str, where: str, count_unused: CountUnused) -> Message:
    """Return what a message holds beside role and content."""
    found: Message = {}
    unused = message.keys() - _ALWAYS_READ - {*_READ[role]}
    count_unused(f"messages[].{key}" for key in unused if message[key] is not None)
    for key in _READ[role]:
        value = message.get(key)
        match key:
            case _ if value is None:
                continue
            case "weight":
                if value not in (0, 1):
                    raise BadValueError(
                        f'"{where}weight": expected 0 or 1, found {describe(value)}'
                    )
                found["weight"] = int(value)
            case "tool_calls" | "function_call":
                calls = value if key == "tool_calls" else [value]
                if calls := read_tool_calls(calls, f"{where}{key}"):
                    found["tool_calls"] = calls
            case "reasoning":
                found["reasoning_content"] = read_text(message, key, where)
            case _:
                found[key] = read_text(message, key, where)
    return found
