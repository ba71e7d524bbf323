"""Messages of one role in a row, which OpenAI takes and chat templates refuse, as one."""

from typing import Any

_JOINED = {"user": "user", "system": "system", "developer": "system"}
_BETWEEN = {"type": "text", "text": "\n\n"}


def join_messages(messages: list[Any]) -> list[Any]:
    """Return the messages with a blank line between what one role says in a row.

    What is no message of a user or of the system stays as it is.
    """
    joined: list[Any] = []
    for message in messages:
        last: Any = joined[-1] if joined else None
        said, more = _parts(last), _parts(message)
        if said and more and _role(last) == _role(message):
            joined[-1] = {**last, "content": [*said, _BETWEEN, *more]}
        else:
            joined.append(message)
    return joined


def _role(message: Any) -> str | None:
    role = message.get("role")
    return _JOINED.get(role) if isinstance(role, str) else None


def _parts(message: Any) -> list[Any]:
    """Return the parts of a message that may be joined; none of any other."""
    if not isinstance(message, dict) or _role(message) is None:
        return []
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return content if isinstance(content, list) else []
