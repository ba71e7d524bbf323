"""Answers of chat/completions, whole and in chunks."""

from collections.abc import Sequence
from typing import Any

from src.service.openai.parsing.answer import Answer
from src.service.openai.parsing.deltas import (
    CallArguments,
    CallStart,
    Content,
    Delta,
    Reasoning,
)

Shape = dict[str, Any]


def write_message(answer: Answer) -> Shape:
    """Return an answer as a message of the assistant."""
    message: Shape = {"role": "assistant", "content": answer.content, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["content"] = answer.content or None
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.calls
        ]
    return message


def write_completion(head: Shape, choices: Sequence[Shape], usage: Shape) -> Shape:
    """Return a whole answer; `head` is its id, created and model."""
    return {**head, "object": "chat.completion", "choices": list(choices), "usage": usage}


def write_choice(index: int, answer: Answer, reason: str, logprobs: Shape | None) -> Shape:
    """Return one of the answers."""
    message = write_message(answer)
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}


def write_delta(delta: Delta) -> Shape:
    """Return the part of a message that a delta is."""
    match delta:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text}
        case CallStart(index, id_, name):
            function = {"name": name, "arguments": ""}
            call = {"index": index, "id": id_, "type": "function", "function": function}
            return {"tool_calls": [call]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def write_chunk(
    head: Shape,
    index: int,
    delta: Shape,
    *,
    reason: str | None = None,
    logprobs: Shape | None = None,
) -> Shape:
    """Return one event of a stream."""
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}
