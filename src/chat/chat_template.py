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
class ChatTemplateFormat:
    """The base model's own chat template; `render` turns messages into text with it.

    What is learned of the template is learned once.
    """

    render: Callable[[list[dict[str, str]], bool], str]
    special_tokens: Sequence[str]

    @cached_property
    def uses_inst_tags(self) -> bool:
        """Whether a prompt may hold a conversation in [INST] tags."""
        return any("[INST]" in context for context in self._open_contexts)

    @cached_property
    def answer_prefix(self) -> str:
        """What stands between prompt and answer and belongs to neither."""
        opening, ending = self._open_contexts
        (start, between, _), _ = self._rendered(Conversation([Turn("", "")]))
        prefix = between.removeprefix(ending)
        follows = start == opening and between.startswith(ending)
        return prefix if follows and not prefix.strip() else ""

    @cached_property
    def _open_contexts(self) -> list[str]:
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
        (*contexts, ending), messages = self._rendered(conversation)
        segments: list[Segment] = []
        num_answers_before = sum(role == "assistant" for role, _ in messages) - num_target_turns
        for number, (context, (role, content)) in enumerate(
            zip(contexts, messages, strict=True), 1
        ):
            if role != "assistant":
                *before, last = self._context(context)
                assert isinstance(last, Text)
                segments += [*before, Text(last.text + content)]
                continue
            if self.answer_prefix and context.endswith(self.answer_prefix):
                context = context.removesuffix(self.answer_prefix)
                content = self.answer_prefix + content
            num_answers_before -= 1
            is_begun = conversation.is_open and number == len(messages)
            answer = Text(
                content, is_target=num_answers_before < 0, continues=True, ends=not is_begun
            )
            segments += [*self._context(context), answer]
        if not conversation.is_open:
            segments += self._context(ending)
        return _merge_text(segments)

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
    ) -> tuple[list[str], list[tuple[str, str]]]:
        """Return what the template writes around each message, and (role, content) of these.

        It is rendered with placeholders, so that nothing people wrote meets the template.
        """
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
        parts = _PLACEHOLDER.split(text)
        numbers = [int(number) for number in parts[2::4]]
        if numbers != list(range(len(said))):
            raise UserError(
                "the base model's chat template leaves out or reorders messages: "
                f"expected {len(said)} in order, found {numbers}; set prompt_template"
            )
        trimmed = []
        for (role, content), before, after in zip(said, parts[1::4], parts[3::4], strict=True):
            # A template that trims contents has trimmed the spaces around the placeholder.
            content = content if before else content.lstrip()
            trimmed.append((role, content if after else content.rstrip()))
        return parts[::4], trimmed


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
