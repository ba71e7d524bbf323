"""The body of chat/completions."""

import json
from dataclasses import dataclass
from typing import Any

from src.service.openai.errors import ApiError, bad_request
from src.service.openai.fields import Fields
from src.service.openai.generation.messages import join_messages
from src.service.openai.generation.request import (
    MAX_TOKENS,
    SAMPLING,
    WITHOUT_EFFECT,
    GenerationRequest,
    read_request,
    read_sampling,
)
from src.service.openai.generation.tools import ToolChoice, read_tool_choice
from src.service.openai.parsing.family import Family

IGNORED = ("reasoning_effort", "verbosity", "prediction")
REFUSED = ("audio", "functions", "function_call", "web_search_options")
KNOWN = SAMPLING | WITHOUT_EFFECT | {
    *("messages", "tools", "tool_choice", "parallel_tool_calls", "response_format"),
    *("max_completion_tokens", "top_logprobs", "modalities", *IGNORED, *REFUSED),
}  # fmt: skip
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True)
class ChatRequest:
    """A request for the next message of a conversation."""

    generation: GenerationRequest
    tool_choice: ToolChoice
    is_one_call: bool
    """Whether an answer ends with its first call of a tool."""

    def read_by(self, family: Family) -> Family:
        """Return how answers are read: one that follows a schema has no reasons before it."""
        has_schema = "json_schema" in self.generation.inputs
        if has_schema and not self.tool_choice.must_call:
            return Family()
        return self.tool_choice.read_by(family)


def read_chat_request(body: dict[str, Any]) -> ChatRequest:
    """Return what a body asks for; raises ApiError that names the field that cannot be meant."""
    fields = Fields(body, KNOWN)
    for name in REFUSED:
        if fields.get(name):
            advice = "; expected tools and tool_choice" if name.startswith("function") else ""
            raise bad_request(name, f"not supported{advice}", "unsupported_parameter")
    if fields.get("modalities") not in (None, [], ["text"]):
        raise fields.refuse("modalities", '["text"]')
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise fields.refuse("messages", "a list of messages")
    most = fields.whole("max_completion_tokens", 1, MAX_TOKENS, MAX_TOKENS)
    inputs = read_sampling(fields, default_tokens=most)
    inputs["messages"] = json.dumps(join_messages(messages))
    tool_choice = read_tool_choice(fields)
    if tool_choice.tools:
        inputs["tools"] = json.dumps(tool_choice.tools)
    schema = _response_schema(fields)
    if schema is not None and tool_choice.tools:
        raise bad_request(
            "response_format", "expected text beside tools: a schema leaves no room for calls"
        )
    if schema := tool_choice.json_schema or schema:
        inputs["json_schema"] = schema
    has_logprobs = fields.flag("logprobs")
    if has_logprobs:
        inputs["logprobs"] = fields.whole("top_logprobs", 0, MAX_TOP_LOGPROBS, 0)
    elif fields.get("top_logprobs"):
        raise ApiError(400, "top_logprobs: expected logprobs beside it", param="top_logprobs")
    generation = read_request(fields, inputs, has_logprobs=has_logprobs, ignored=IGNORED)
    return ChatRequest(generation, tool_choice, not fields.flag("parallel_tool_calls", True))


def _response_schema(fields: Fields) -> str | None:
    match fields.get("response_format"):
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return '{"type": "object"}'
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return json.dumps(schema)
    raise fields.refuse(
        "response_format", "text, json_object, or json_schema with a name and a schema"
    )
