"""A prompt format that is the base model's own chat template."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from src.chat.conversation import Dialogue, Turn
from src.chat.segments import Control, Piece, Text
from src.errors import UserError


@dataclass(frozen=True)
class ChatTemplateFormat:
    """The base model's own chat template; `render` turns messages into text with it."""

    render: Callable[[list[dict[str, str]], bool], str]
    special_tokens: Sequence[str]

    @property
    def uses_inst_tags(self) -> bool:
        return "[INST]" in self._rendered(Dialogue([Turn("")]))[0]

    @property
    def answer_prefix(self) -> str:
        return self._answer_prefix

    @cached_property
    def _answer_prefix(self) -> str:
        prompt, _ = self._rendered(Dialogue([Turn("")]))
        whole, places = self._rendered(Dialogue([Turn("", "")]))
        answer_place = places[-1][0]
        prefix = whole[len(prompt) : answer_place.start()]
        return prefix if whole.startswith(prompt) and not prefix.strip() else ""

    def pieces(self, dialogue: Dialogue, *, num_learned: int = 0) -> list[Piece]:
        rendered, places = self._rendered(dialogue)
        if dialogue.is_open:
            rendered = rendered[: places[-1][0].end()]
        pieces: list[Piece] = []
        context, position = "", 0
        num_unlearned = sum(is_answer for *_, is_answer in places) - num_learned
        for place, content, is_answer in places:
            context += rendered[position : place.start()]
            position = place.end()
            # A template that trims contents has trimmed the blanks around the place holder.
            content = content if place[1] else content.lstrip()
            content = content if place[3] else content.rstrip()
            if not is_answer:
                pieces += self._context(context, has_more=True)
                pieces[-1] = _joined(pieces[-1], content)
                context = ""
                continue
            prefix = self.answer_prefix
            if prefix and context.endswith(prefix):
                context, content = context[: -len(prefix)], prefix + content
            pieces += self._context(context, has_more=False)
            context = ""
            num_unlearned -= 1
            pieces.append(
                Text(
                    content,
                    learned=num_unlearned < 0,
                    continues=True,
                    ends=not (dialogue.is_open and place is places[-1][0]),
                )
            )
        pieces += self._context(context + rendered[position:], has_more=False)
        return _merge_text(pieces)

    def _context(self, text: str, *, has_more: bool) -> list[Piece]:
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

    def _rendered(self, dialogue: Dialogue) -> tuple[str, list[tuple[re.Match[str], str, bool]]]:
        """Render with place holders, so that nothing people wrote meets the template."""
        contents: list[tuple[str, bool]] = []

        def hold(content: str, *, is_answer: bool) -> str:
            contents.append((content, is_answer))
            return f" \ue000{len(contents) - 1}\ue001 "

        messages = []
        if dialogue.system:
            messages.append({"role": "system", "content": hold(dialogue.system, is_answer=False)})
        for turn in dialogue.turns:
            messages.append({"role": "user", "content": hold(turn.user, is_answer=False)})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": hold(turn.answer, is_answer=True)})
        text = self.render(messages, dialogue.turns[-1].answer is None)
        found = list(re.finditer("( ?)\ue000(\\d+)\ue001( ?)", text))
        if [int(match[2]) for match in found] != list(range(len(contents))):
            raise UserError(
                "the base model's chat template leaves out or reorders messages: "
                f"expected {len(contents)} in order, found {[int(match[2]) for match in found]}; "
                "set prompt_template"
            )
        return text, [(match, *contents[int(match[2])]) for match in found]


def _joined(piece: Piece, text: str) -> Text:
    assert isinstance(piece, Text)
    return replace(piece, text=piece.text + text)


def _merge_text(pieces: list[Piece]) -> list[Piece]:
    """Join context texts that touch, because the model's tokenizer reads them as one."""
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if isinstance(piece, Text) and not piece.continues and isinstance(last, Text):
            if last.continues:
                merged.append(replace(piece, continues=True))
            else:
                merged[-1] = replace(last, text=last.text + piece.text)
        elif not (isinstance(piece, Text) and not piece.text and not piece.ends):
            merged.append(piece)
    return merged
