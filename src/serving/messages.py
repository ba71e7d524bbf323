"""A conversation and its tools as JSON, the form that OpenAI's clients send."""

import json
from typing import Any

from src.chat.conversation import Conversation, reasoning_of
from src.data.reading.fields import BadValueError
from src.data.reading.messages import read_messages
from src.data.reading.tools import read_tools
from src.errors import UserError

MAX_MESSAGES = 1000


def parse_messages(text: str) -> Conversation:
    """Return the conversation that a JSON list of messages holds.

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
    try:
        said = read_messages(messages, lambda unused: None, label="")
    except BadValueError as error:
        raise UserError(f"messages: {error}") from None
    last = said[-1]
    if last["role"] == "system":
        raise UserError("messages: expected a message of the user, found a system message alone")
    if last.get("tool_calls"):
        raise UserError("messages: expected what the tools returned below the calls of the last")
    if reasoning_of(last):
        raise UserError("messages: expected no reasons beside an answer that is to be continued")
    return Conversation(tuple(said))


def parse_tools(text: str) -> tuple[dict[str, Any], ...]:
    """Return the tools that a JSON list holds; raises UserError for anything else."""
    try:
        return read_tools(text, "tools")
    except BadValueError as error:
        raise UserError(f"tools: {error}") from None
