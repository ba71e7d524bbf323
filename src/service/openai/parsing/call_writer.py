"""Calls of tools in the order in which an answer makes them."""

import json
import secrets
import string
from collections.abc import Callable, Sequence
from typing import Any

from src.service.openai.parsing.deltas import CallArguments, CallStart

_LETTERS = string.ascii_letters + string.digits


def new_call_id() -> str:
    """Return an id as OpenAI's calls have."""
    return "call_" + "".join(secrets.choice(_LETTERS) for _ in range(24))


def new_short_id() -> str:
    """Return an id of nine characters: the templates of Mistral's models refuse all others."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


class CallWriter:
    """Numbers the calls of one answer."""

    def __init__(self, tools: Sequence[dict[str, Any]], new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._index = -1
        functions = [tool.get("function", tool) for tool in tools]
        self._parameters = {f["name"]: f.get("parameters") or {} for f in functions}

    def start(self, name: str) -> CallStart:
        """Begin the next call."""
        self._index += 1
        return CallStart(self._index, self._new_id(), name)

    def arguments(self, text: str) -> CallArguments:
        """Go on with the arguments of the call that was begun last."""
        return CallArguments(self._index, text)

    def knows(self, name: str) -> bool:
        """Return whether a tool of that name was given."""
        return name in self._parameters

    def typed(self, name: str, key: str, text: str) -> str:
        """Return an argument that was written as plain text as JSON, of the type it should have."""
        properties = self._parameters.get(name, {}).get("properties")
        schema = properties.get(key) if isinstance(properties, dict) else None
        kind = schema.get("type") if isinstance(schema, dict) else None
        if kind != "string":
            try:
                return json.dumps(json.loads(text), ensure_ascii=False)
            except (ValueError, RecursionError):
                pass
        return json.dumps(text, ensure_ascii=False)
