"""A conversation as a JSON list of messages, the form that OpenAI's clients send."""

import json
from typing import Any

from src.chat.conversation import Conversation, Turn
from src.errors import UserError
from src.files.printable import printable
from src.serving.unicode_text import check_unicode

MAX_MESSAGES = 1000
NOT_SERVED = ("tool_calls", "function_call", "audio")
"""What OpenAI's messages may carry beside their content; null or empty where there is none."""


def parse_messages(text: str, *, default_system: str) -> Conversation:
    """Read an optional system message, then user and assistant in turn.

    Where the last message is the assistant's, the model goes on with it. Raises UserError for
    anything else.
    """
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(
            "messages: expected a JSON list of messages, found text that is no JSON"
        ) from None
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        found = f"{len(messages):,}" if isinstance(messages, list) else "no list"
        raise UserError(
            f"messages: expected a JSON list of 1 to {MAX_MESSAGES:,} messages, found {found}"
        )
    roles, contents = zip(
        *(_message(n, message) for n, message in enumerate(messages)), strict=True
    )
    system = default_system
    if roles[0] == "system":
        system, roles, contents = contents[0], roles[1:], contents[1:]
    for number, role in enumerate(roles):
        expected = "assistant" if number % 2 else "user"
        if role != expected:
            place = number + 1 + len(messages) - len(roles)
            raise UserError(f"messages: message {place}: expected role {expected}, found {role}")
    if not roles:
        raise UserError("messages: expected a message of the user, found a system message alone")
    answers = [*contents[1::2], *([] if len(contents) % 2 == 0 else [None])]
    turns = [Turn(user, answer) for user, answer in zip(contents[::2], answers, strict=True)]
    return Conversation(turns, system=system, is_open=turns[-1].answer is not None)


def _message(number: int, message: Any) -> tuple[str, str]:
    where = f"messages: message {number + 1}"
    if not isinstance(message, dict):
        raise UserError(
            f"{where}: expected an object with role and content, found {_describe(message)}"
        )
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant"):
        raise UserError(
            f"{where}: expected role system, user or assistant, found {printable(role, 40)}"
        )
    for name in NOT_SERVED:
        if message.get(name):
            raise UserError(f"{where}: expected role and content alone, found {name}")
    if isinstance(content, list):
        content = "".join(_part(f"{where}: part {n + 1}", part) for n, part in enumerate(content))
    if not isinstance(content, str):
        raise UserError(f"{where}: expected content that is text, found {_describe(content)}")
    check_unicode(where, content)
    return role, content


def _part(where: str, part: Any) -> str:
    if not isinstance(part, dict):
        raise UserError(f"{where}: expected an object with text, found {_describe(part)}")
    kind, text = part.get("type", "text"), part.get("text")
    if kind != "text":
        raise UserError(f"{where}: expected type text, found {printable(kind, 40)}")
    if not isinstance(text, str):
        raise UserError(f"{where}: expected text, found {_describe(text)}")
    return text


def _describe(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "an object"
