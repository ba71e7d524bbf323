"""A prompt format that is the base model's own chat template."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from src.chat.conversation import Conversation, Message, reasoning_of, write_calls
from src.errors import UserError

_USER, _ANSWER, _SYSTEM, _REASONS = "qzuserqz", "qzanswerqz", "qzsystemqz", "qzwhyqz"
_TOOL, _CALLED = "qztool", "qzcalled"
_ASKED: Message = {"role": "user", "content": _USER}
_ANSWERED: Message = {"role": "assistant", "content": _ANSWER}
_CALL = {"id": "qzcall000", "function": {"name": _CALLED, "arguments": {"a": 1}}}
_PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
_FUNCTION = {"name": _TOOL, "description": "d", "parameters": _PARAMETERS}
_TOOLS = ({"type": "function", "function": _FUNCTION},)


class Render(Protocol):
    """Turns messages into text, and with `opens` begins an answer."""

    def __call__(self, messages: list[Any], *, tools: list[Any] | None, opens: bool) -> str: ...


@dataclass(frozen=True)
class ChatTemplateFormat:
    """The base model's own chat template.

    A prompt is what Transformers renders, up to the end of the generation prompt. An answer follows
    it as it was written, whatever the template makes of finished ones. What is to be known of the
    template is found out once, from samples.
    """

    render: Render
    special_tokens: Sequence[str]
    """Its control tokens."""

    @property
    def uses_inst_tags(self) -> bool:
        """Whether a prompt may hold a conversation in [INST] tags."""
        return "[INST]" in self._opened

    @property
    def answer_prefix(self) -> str:
        """White space that stands between prompt and answer and belongs to neither."""
        return self.left_out if self.left_out.isspace() else ""

    @cached_property
    def left_out(self) -> str:
        """What finished answers begin with, and a generation prompt does not."""
        before = self._closed.partition(_ANSWER)[0]
        return before.removeprefix(self._opened) if before.startswith(self._opened) else ""

    @cached_property
    def generation_prompt(self) -> str:
        """What the template adds after the messages to ask for an answer; where it adds nothing,
        what stands after the last one."""
        unopened = self._tried([_ASKED], opens=False)
        pairs = enumerate(zip(self._opened, unopened, strict=False))
        start = next((place for place, (a, b) in pairs if a != b), len(unopened))
        controls = [match.span() for match in self._controls.finditer(self._opened)]
        start = next((first for first, stop in controls if first < start < stop), start)
        return (self._opened[start:] or self._opened.rpartition(_USER)[2]) + self.answer_prefix

    @cached_property
    def end(self) -> str | None:
        """The control token that ends an answer; None where the template writes none."""
        closed = self._tried([_ASKED, _ANSWERED], opens=False)
        found = self._controls.search(closed.rpartition(_ANSWER)[2] if _ANSWER in closed else "")
        return found[0] if found else None

    @cached_property
    def is_thinking(self) -> bool:
        """Whether the model writes its reasons before an answer."""
        prompt = self.generation_prompt
        return "</think>" not in prompt and ("<think>" in prompt or self.renders_reasoning)

    @cached_property
    def renders_reasoning(self) -> bool:
        """Whether the template has a place for the reasons of an answer."""
        answer = {**_ANSWERED, "reasoning_content": _REASONS}
        return _REASONS in self._tried([_ASKED, answer], opens=False)

    @cached_property
    def loses_text_of_calls(self) -> bool:
        """Whether the text that a message has beside its calls of tools is left out."""
        form = self._call_forms[self._shows_tools]
        calls = write_calls({**_ANSWERED, "tool_calls": [_CALL]}, form or ("", False))
        tools = _TOOLS if self._shows_tools else ()
        return _ANSWER not in self._tried([_ASKED, calls], tools, opens=False)

    def prompt(self, conversation: Conversation) -> str:
        """Return what the model reads before the answer to the last message.

        Raises UserError for a conversation that the template refuses or does not show whole.
        """
        num_asked = sum(message["role"] == "user" for message in conversation.messages)
        if num_asked > 1 and not self._shows_earlier:
            raise UserError(
                "the base model's chat template leaves out or reorders earlier messages: expected "
                "one prompt and its answer, or a prompt_template"
            )
        if conversation.tools and not self._shows_tools:
            raise UserError("tools: the base model's chat template has no place for them")
        return self._rendered(conversation, opens=True)

    def learned(self, conversation: Conversation) -> str:
        """Return what is learned of the last message, which is the assistant's."""
        *before, message = conversation.messages
        if not message.get("tool_calls") and not reasoning_of(message):
            return self.answer_prefix + message["content"]
        if reasoning_of(message) and not self.renders_reasoning:
            raise UserError(
                "reasoning_content: the base model's chat template has no place for it; expected "
                "it in the content, as the model writes it"
            )
        prompt = self.prompt(conversation.until(len(before)))
        closed = self._rendered(conversation, opens=False)
        plain = self._rendered(conversation.until(len(before)).and_then([_ANSWERED]), opens=False)
        plain = plain.rpartition(_ANSWER)[0]
        if closed.startswith(prompt):
            text = closed[len(prompt) :]
            if not self.answer_prefix:
                text = text.removeprefix(self.left_out)
        elif closed.startswith(plain) and not reasoning_of(message):
            text = closed[len(plain) :]
        else:
            raise UserError(
                "the base model's chat template writes this answer in another place than its "
                "generation prompt: expected one without reasoning_content"
            )
        if self.end is not None and self.end in text:
            text = text.rpartition(self.end)[0]
        return text

    @cached_property
    def _opened(self) -> str:
        return self._sample(_ASKED, opens=True)

    @cached_property
    def _closed(self) -> str:
        return self._sample(_ASKED, _ANSWERED, opens=False)

    @cached_property
    def _lead(self) -> list[Message]:
        """What stands before the samples: a system message, where the template demands one."""
        system = {"role": "system", "content": _SYSTEM}
        try:
            self.render([_ASKED], tools=None, opens=True)
        except Exception:  # of the template's own choosing
            return [system] if self._tried([system, _ASKED]) else []
        return []

    def _sample(self, *messages: Message, opens: bool) -> str:
        text = self._rendered(Conversation((*self._lead, *messages)), opens=opens)
        if messages[-1]["content"] not in text:
            raise UserError(
                "the base model's chat template does not show the last message: set prompt_template"
            )
        return text

    @cached_property
    def _controls(self) -> re.Pattern[str]:
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @cached_property
    def _shows_earlier(self) -> bool:
        last = {"role": "user", "content": _REASONS}
        return _in_order(self._tried([_ASKED, _ANSWERED, last]), [_USER, _ANSWER, _REASONS])

    @cached_property
    def _shows_system(self) -> bool:
        """Some templates refuse a system message, lose it, or move it to a later place."""
        said = [{"role": "system", "content": _SYSTEM}, _ASKED]
        later = [*said, _ANSWERED, {"role": "user", "content": _REASONS}]
        return all(_in_order(self._tried(messages), [_SYSTEM, _USER]) for messages in (said, later))

    @cached_property
    def _shows_tools(self) -> bool:
        text = self._tried([_ASKED], tools=_TOOLS)
        return _TOOL in text and _USER in text

    @cached_property
    def _call_forms(self) -> dict[bool, tuple[str | None, bool] | None]:
        """How the template reads a message that calls tools, with tools named and without."""
        return {bool(tools): self._call_form(tools) for tools in (_TOOLS, ())}

    def _call_form(self, tools: Sequence[Any]) -> tuple[str | None, bool] | None:
        """Return what stands for a missing content, and whether arguments are text; None where the
        template reads no calls."""
        for form in (("", False), (None, False), ("", True), (None, True)):
            calls = write_calls({"role": "assistant", "content": "", "tool_calls": [_CALL]}, form)
            told = {"role": "tool", "name": _TOOL, "tool_call_id": "qzcall000", "content": _ANSWER}
            if _in_order(self._tried([_ASKED, calls, told], tools=tools), [_CALLED, _ANSWER]):
                return form
        return None

    def _tried(
        self, messages: Sequence[Message], tools: Sequence[Any] = (), *, opens: bool = True
    ) -> str:
        """Return the text of messages as they are; "" where the template refuses them."""
        if messages[0]["role"] != "system":
            messages = [*self._lead, *messages]
        try:
            return self.render(list(messages), tools=list(tools) or None, opens=opens)
        except Exception:  # a template refuses messages with an error of its own choosing
            return ""

    def _rendered(self, conversation: Conversation, *, opens: bool) -> str:
        has_tools = bool(conversation.tools)
        messages = [self._read(message, has_tools) for message in conversation.messages]
        if messages[0]["role"] == "system" and len(messages) > 1 and not self._shows_system:
            system, user, *rest = messages
            both = f"{system['content']}\n\n{user['content']}"
            messages = [{**user, "content": both}, *rest]
        try:
            return self.render(messages, tools=list(conversation.tools) or None, opens=opens)
        except Exception as error:  # of the template's own choosing
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the base model's chat template refuses the messages: {reason}"
            ) from None

    def _read(self, message: Message, has_tools: bool) -> Message:
        """Return a message in the form that the template reads."""
        if message.get("tool_calls") or message["role"] == "tool":
            form = self._call_forms[has_tools]
            if form is None:
                without = (
                    "" if has_tools or not self._call_forms[True] else " without tools beside them"
                )
                raise UserError(
                    "tool_calls: the base model's chat template has no place for calls of tools"
                    + without
                )
            message = write_calls(message, form)
        return message


def _in_order(text: str, words: Sequence[str]) -> bool:
    """Return whether the words stand in a text, each once before the next."""
    places = [text.lower().find(word) for word in words]
    return -1 not in places and places == sorted(places)
