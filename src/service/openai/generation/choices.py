"""The choices of a request side by side in the engine, as one stream of what it says of them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from src.service.openai.errors import ApiError

Message = dict[str, Any]
Ask = Callable[[dict[str, Any]], AsyncIterator[Message]]
"""Hands the inputs of `predict` to the engine; what is left before its end is canceled."""
_FIELDS = {
    "max_new_tokens": "max_tokens",
    "stop_sequences": "stop",
    "json_schema": "response_format",
    **{name: name for name in ("messages", "tools", "temperature", "top_p", "top_k")},
}
"""What the fields are called here that the engine names first in its errors."""


class Choices:
    """Answers that are generated at the same time; leaving the context cancels them."""

    def __init__(self, ask: Ask, inputs: Sequence[dict[str, Any]], *, prompt_field: str) -> None:
        """Begin; `prompt_field` is the field of the request that the prompt was made of."""
        self._prompt_field = prompt_field
        self._messages: asyncio.Queue[tuple[int, Message | Exception]] = asyncio.Queue()
        self._tasks = [
            asyncio.create_task(self._follow(number, ask, one)) for number, one in enumerate(inputs)
        ]
        self._early: list[tuple[int, Message]] = []
        self._num_unfinished = len(inputs)

    async def __aenter__(self) -> "Choices":
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def start(self) -> None:
        """Wait until the engine has taken all; raises ApiError where it refuses one."""
        num_waiting = len(self._tasks)
        while num_waiting:
            number, message = await self._next()
            if message["event"] == "started":
                num_waiting -= 1
            else:
                self._early.append((number, message))

    async def messages(self) -> AsyncIterator[tuple[int, Message]]:
        """Yield (number of the choice, message), up to the end of the last choice.

        Raises ApiError where one fails.
        """
        while self._early or self._num_unfinished:
            number, message = self._early.pop(0) if self._early else await self._next()
            self._num_unfinished -= message["event"] == "end"
            yield number, message

    async def _next(self) -> tuple[int, Message]:
        number, message = await self._messages.get()
        if isinstance(message, Exception):
            raise message
        if message["event"] == "end" and message["status"] != "succeeded":
            raise _refusal(message, self._prompt_field)
        return number, message

    async def _follow(self, number: int, ask: Ask, inputs: dict[str, Any]) -> None:
        try:
            async with aclosing(ask(inputs)) as messages:  # pyright: ignore[reportArgumentType]
                async for message in messages:
                    self._messages.put_nowait((number, message))
        except Exception as error:
            self._messages.put_nowait((number, error))


def _refusal(end: Message, prompt_field: str) -> ApiError:
    error = end.get("error") or "the answer was cut off: the engine ended"
    if not end.get("refused"):
        return ApiError(500, error)
    name, _, sentence = error.partition(": ")
    if name == "prompt":
        error = f"{prompt_field}: {sentence}"
        return ApiError(400, error, param=prompt_field, code="context_length_exceeded")
    return ApiError(400, error, param=_FIELDS.get(name))
