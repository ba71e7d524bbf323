"""A prompt format that is the base model's own chat template."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from src.chat.conversation import Conversation, Turn
from src.chat.segments import Control, Segment, Text
from src.errors import UserError


@dataclass(frozen=True)
class ChatTemplateFormat:
    """The base model's own chat template; `render` turns messages into text with it."""

    render: Callable[[list[dict[str, str]], bool], str]
    special_tokens: Sequence[str]

    @property
    def uses_inst_tags(self) -> bool:
        return "[INST]" in self._rendered(Conversation([Turn("")]))[0]

    @property
    def answer_prefix(self) -> str:
        return self._answer_prefix

    @cached_property
    def _answer_prefix(self) -> str:
        prompt, _ = self._rendered(Conversation([Turn("")]))
        whole, places = self._rendered(Conversation([Turn("", "")]))
        answer_place = places[-1][0]
        prefix = whole[len(prompt) : answer_place.start()]
        return prefix if whole.startswith(prompt) and not prefix.strip() else ""

    def segments(self, conversation: Conversation, *, num_target_turns: int = 0) -> list[Segment]:
        rendered, places = self._rendered(conversation)
        if conversation.is_open:
            rendered = rendered[: places[-1][0].end()]
        segments: list[Segment] = []
        context, position = "", 0
        num_unlearned = sum(is_answer for *_, is_answer in places) - num_target_turns
        for place, content, is_answer in places:
            context += rendered[position : place.start()]
            position = place.end()
            # A template that trims contents has trimmed the blanks around the place holder.
            content = content if place[1] else content.lstrip()
            content = content if place[3] else content.rstrip()
            if not is_answer:
                segments += self._context(context, has_more=True)
                segments[-1] = _joined(segments[-1], content)
                context = ""
                continue
            prefix = self.answer_prefix
            if prefix and context.endswith(prefix):
                context, content = context[: -len(prefix)], prefix + content
            segments += self._context(context, has_more=False)
            context = ""
            num_unlearned -= 1
            segments.append(
                Text(
                    content,
                    is_target=num_unlearned < 0,
                    continues=True,
                    ends=not (conversation.is_open and place is places[-1][0]),
                )
            )
        segments += self._context(context + rendered[position:], has_more=False)
        return _merge_text(segments)

    def _context(self, text: str, *, has_more: bool) -> list[Segment]:
        """Split template text at its special tokens, the only ones that count as such."""
        parts = self._special.split(text) if self.special_tokens else [text]
        return [
            Control(part) if number % 2 else Text(part)
            for number, part in enumerate(parts)
            if part or (has_more and number == len(parts) - 1)
        ]

    @cached_property
    def _special(self) -> re.Pattern[str]:
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def _rendered(
        self, conversation: Conversation
    ) -> tuple[str, list[tuple[re.Match[str], str, bool]]]:
        """Render with place holders, so that nothing people wrote meets the template."""
        contents: list[tuple[str, bool]] = []

        def hold(content: str, *, is_answer: bool) -> str:
            contents.append((content, is_answer))
            return f" \ue000{len(contents) - 1}\ue001 "

        messages = []
        if conversation.system:
            messages.append(
                {"role": "system", "content": hold(conversation.system, is_answer=False)}
            )
        for turn in conversation.turns:
            messages.append({"role": "user", "content": hold(turn.user, is_answer=False)})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": hold(turn.answer, is_answer=True)})
        text = self.render(messages, conversation.turns[-1].answer is None)
        found = list(re.finditer("( ?)\ue000(\\d+)\ue001( ?)", text))
        if [int(match[2]) for match in found] != list(range(len(contents))):
            raise UserError(
                "the base model's chat template leaves out or reorders messages: "
                f"expected {len(contents)} in order, found {[int(match[2]) for match in found]}; "
                "set prompt_template"
            )
        return text, [(match, *contents[int(match[2])]) for match in found]


def _joined(segment: Segment, text: str) -> Text:
    assert isinstance(segment, Text)
    return replace(segment, text=segment.text + text)


def _merge_text(segments: list[Segment]) -> list[Segment]:
    """Join context texts that touch, because the model's tokenizer reads them as one."""
    merged: list[Segment] = []
    for segment in segments:
        last = merged[-1] if merged else None
        if isinstance(segment, Text) and not segment.continues and isinstance(last, Text):
            if last.continues:
                merged.append(replace(segment, continues=True))
            else:
                merged[-1] = replace(last, text=last.text + segment.text)
        elif not (isinstance(segment, Text) and not segment.text and not segment.ends):
            merged.append(segment)
    return merged
