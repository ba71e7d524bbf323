"""A conversation as a JSON list of messages, the form that OpenAI's clients send."""

import json
from typing import Any

from src.chat.conversation import Conversation, Message
from src.chat.tokenizer import check_unicode
from src.errors import UserError
from src.files.printable import printable

MAX_MESSAGES = 1000
NOT_SERVED = ("tool_calls", "function_call", "audio")
"""What OpenAI's messages may carry beside their content; null or empty where there is none."""

JSON_KINDS = {
    type(None): "nothing",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


def parse_messages(text: str) -> Conversation:
    """Return an optional system message, and the turns of user and assistant after it.

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
    said = [_message(number, message) for number, message in enumerate(messages, 1)]
    turns = said[1:] if said[0]["role"] == "system" else said
    for number, message in enumerate(turns):
        expected = "assistant" if number % 2 else "user"
        if message["role"] != expected:
            where = f"messages: message {number + 1 + len(said) - len(turns)}"
            raise UserError(f"{where}: expected role {expected}, found {message['role']}")
    if not turns:
        raise UserError("messages: expected a message of the user, found a system message alone")
    return Conversation(tuple(said))


def _message(number: int, message: Any) -> Message:
    where = f"messages: message {number}"
    if not isinstance(message, dict):
        raise UserError(
            f"{where}: expected an object with role and content, found {JSON_KINDS[type(message)]}"
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
        content = "".join(_part(f"{where}: part {n}", part) for n, part in enumerate(content, 1))
    if not isinstance(content, str):
        raise UserError(
            f"{where}: expected content that is text, found {JSON_KINDS[type(content)]}"
        )
    check_unicode(where, content)
    return {"role": role, "content": content}


def _part(where: str, part: Any) -> str:
    if not isinstance(part, dict):
        raise UserError(f"{where}: expected an object with text, found {JSON_KINDS[type(part)]}")
    kind, text = part.get("type", "text"), part.get("text")
    if kind != "text":
        raise UserError(f"{where}: expected type text, found {printable(kind, 40)}")
    if not isinstance(text, str):
        raise UserError(f"{where}: expected text, found {JSON_KINDS[type(text)]}")
    return text
