"""A dialogue as a JSON list of messages, the form that OpenAI's clients send."""

import json
from typing import Any

from src.errors import UserError
from src.prompts.dialogue import Dialogue, Turn

MAX_MESSAGES = 1000


def parse_messages(text: str, *, default_system: str) -> Dialogue:
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
    return Dialogue(turns, system=system, is_open=turns[-1].answer is not None)


def _message(number: int, message: Any) -> tuple[str, str]:
    where = f"messages: message {number + 1}"
    if not isinstance(message, dict):
        raise UserError(f"{where}: expected an object with role and content, found something else")
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant"):
        raise UserError(f"{where}: expected role system, user or assistant, found {str(role)[:40]}")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        is_text = all(isinstance(part, str) for part in parts)
        content = "".join(map(str, parts)) if is_text else None
    if not isinstance(content, str):
        raise UserError(f"{where}: expected content that is text, found something else")
    return role, content
