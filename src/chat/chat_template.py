"""A prompt format that is the base model's own chat template."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from src.chat.conversation import Conversation, Turn
from src.chat.segments import Control, Segment, Text
from src.errors import UserError

_PLACEHOLDER = re.compile("( ?)\ue000(\\d+)\ue001( ?)")


@dataclass(frozen=True)
class Placeholder:
    """Where a content stands in the rendered text."""

    start: int
    end: int
    content: str
    is_answer: bool


@dataclass(frozen=True)
class ChatTemplateFormat:
    """The base model's own chat template; `render` turns messages into text with it.

    What is learned of the template is learned once.
    """

    render: Callable[[list[dict[str, str]], bool], str]
    special_tokens: Sequence[str]

    @cached_property
    def uses_inst_tags(self) -> bool:
        """Whether a prompt may hold a conversation in [INST] tags."""
        return "[INST]" in self._open_text

    @cached_property
    def answer_prefix(self) -> str:
        """What stands between prompt and answer and belongs to neither."""
        finished, placeholders = self._rendered(Conversation([Turn("", "")]))
        prefix = finished[len(self._open_text) : placeholders[-1].start]
        return prefix if finished.startswith(self._open_text) and not prefix.strip() else ""

    @cached_property
    def _open_text(self) -> str:
        return self._rendered(Conversation([Turn("")]))[0]

    @cached_property
    def _supports_system(self) -> bool:
        try:
            self._rendered(Conversation([Turn("a")], system="b"), merges_system=False)
        except Exception:  # a template refuses a system message with an error of its own choosing
            return False
        return True

    def segments(self, conversation: Conversation, *, num_target_turns: int = 0) -> list[Segment]:
        """Return the conversation as segments; the last `num_target_turns` answers are targets."""
        rendered, placeholders = self._rendered(conversation)
        if conversation.is_open:
            rendered = rendered[: placeholders[-1].end]
        segments: list[Segment] = []
        position = 0
        num_answers_before = sum(p.is_answer for p in placeholders) - num_target_turns
        for placeholder in placeholders:
            context, content = rendered[position : placeholder.start], placeholder.content
            position = placeholder.end
            if not placeholder.is_answer:
                *before, last = self._context(context)
                assert isinstance(last, Text)
                segments += [*before, Text(last.text + content)]
                continue
            if self.answer_prefix and context.endswith(self.answer_prefix):
                context = context.removesuffix(self.answer_prefix)
                content = self.answer_prefix + content
            segments += self._context(context)
            num_answers_before -= 1
            is_begun = conversation.is_open and placeholder is placeholders[-1]
            segments.append(
                Text(content, is_target=num_answers_before < 0, continues=True, ends=not is_begun)
            )
        return _merge_text([*segments, *self._context(rendered[position:])])

    def _context(self, text: str) -> list[Segment]:
        """Split template text at its special tokens, the only ones that count as such."""
        parts = self._special.split(text) if self.special_tokens else [text]
        return [Control(part) if number % 2 else Text(part) for number, part in enumerate(parts)]

    @cached_property
    def _special(self) -> re.Pattern[str]:
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def _rendered(
        self, conversation: Conversation, *, merges_system: bool = True
    ) -> tuple[str, list[Placeholder]]:
        """Render with placeholders, so that nothing people wrote meets the template."""
        said = [("system", conversation.system)] if conversation.system else []
        for turn in conversation.turns:
            said.append(("user", turn.user))
            if turn.answer is not None:
                said.append(("assistant", turn.answer))
        messages = [
            {"role": role, "content": f" \ue000{number}\ue001 "}
            for number, (role, _) in enumerate(said)
        ]
        if conversation.system and merges_system and not self._supports_system:
            system, user, *rest = messages
            both = f"{system['content']}\n\n{user['content']}"
            messages = [{"role": "user", "content": both}, *rest]
        text = self.render(messages, conversation.turns[-1].answer is None)
        found = list(_PLACEHOLDER.finditer(text))
        numbers = [int(match[2]) for match in found]
        if numbers != list(range(len(said))):
            raise UserError(
                "the base model's chat template leaves out or reorders messages: "
                f"expected {len(said)} in order, found {numbers}; set prompt_template"
            )
        placeholders = []
        for match, (role, content) in zip(found, said, strict=True):
            # A template that trims contents has trimmed the spaces around the placeholder.
            content = content if match[1] else content.lstrip()
            content = content if match[3] else content.rstrip()
            placeholders.append(Placeholder(*match.span(), content, role == "assistant"))
        return text, placeholders


def _merge_text(segments: list[Segment]) -> list[Segment]:
    """Join context texts that touch, because the model's tokenizer reads them as one."""
    merged: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Text) and not segment.continues:
            last = merged[-1] if merged else None
            if not segment.text:
                continue
            if isinstance(last, Text) and last.continues:
                segment = replace(segment, continues=True)
            elif isinstance(last, Text):
                segment = replace(merged.pop(), text=last.text + segment.text)
        merged.append(segment)
    return merged
