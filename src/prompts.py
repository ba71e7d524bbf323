"""How a dialogue becomes the pieces of text that the model reads, in training and in serving."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from src.errors import UserError

FREE_CHARACTERS = 10_000
MAX_GROWTH = 4

BOS = "<bos>"
EOS = "<eos>"


@dataclass(frozen=True)
class Control:
    """One control token: `BOS`, `EOS`, or the name of a special token of the tokenizer."""

    token: str


@dataclass(frozen=True)
class Text:
    """A run of plain text; nothing in it is ever read as a control token."""

    text: str
    learned: bool = False
    continues: bool = False
    """True where the text goes on from what stands before it, as an answer does."""
    ends: bool = False
    """True where the model should end its turn after this text."""


Piece = Control | Text


@dataclass(frozen=True)
class Turn:
    """What the user said, and the answer to it where there is one."""

    user: str
    answer: str | None = None


@dataclass(frozen=True)
class Dialogue:
    turns: Sequence[Turn]
    system: str = ""
    is_open: bool = False
    """True where the last answer is only begun and the model should go on with it."""


class PromptFormat(Protocol):
    """The way one base model is spoken to."""

    @property
    def answer_prefix(self) -> str:
        """What stands between prompt and answer and belongs to neither."""
        ...

    @property
    def uses_inst_tags(self) -> bool:
        """Whether a prompt may be a ready dialogue in [INST] tags."""
        ...

    def pieces(self, dialogue: Dialogue, *, num_learned: int = 0) -> list[Piece]:
        """Return the dialogue as pieces; the last `num_learned` answers are what is learned."""
        ...


def fill(template: str, **values: str) -> str:
    """Replace each {name} once and literally; all other braces stay as they are.

    Raises UserError for a template that repeats a long text so often that it grows out of bounds.
    """
    longest = FREE_CHARACTERS + MAX_GROWTH * (len(template) + sum(map(len, values.values())))
    if sum(template.count(f"{{{name}}}") * len(value) for name, value in values.items()) > longest:
        raise UserError(
            f"prompt_template: expected a text of at most {longest:,} characters after the prompt "
            "has taken its places, found more"
        )
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)


@dataclass(frozen=True)
class TagFormat:
    """A format that is one template for each of the user's turns."""

    template: str
    system_block: str = "{system_prompt}\n\n"
    """Goes before the first user text where the template itself has no place for it."""
    answer_prefix: str = ""
    answer_suffix: str = ""
    """Stands between a finished answer and the end of its turn."""
    bos_each_turn: bool = False
    is_stripped: bool = False

    @property
    def uses_inst_tags(self) -> bool:
        return "[INST]" in self.template

    def pieces(self, dialogue: Dialogue, *, num_learned: int = 0) -> list[Piece]:
        pieces: list[Piece] = []
        for number, turn in enumerate(dialogue.turns):
            if number == 0 or self.bos_each_turn:
                pieces.append(Control(BOS))
            pieces.append(Text(self.prompt_text(turn.user, dialogue.system if number == 0 else "")))
            if turn.answer is None:
                continue
            is_unfinished = dialogue.is_open and number == len(dialogue.turns) - 1
            is_learned = number >= len(dialogue.turns) - num_learned
            if is_learned or is_unfinished or not self.is_stripped:
                answer = turn.answer
            else:
                answer = turn.answer.strip()
            pieces.append(
                Text(
                    self.answer_prefix + answer,
                    learned=is_learned,
                    continues=True,
                    ends=not is_unfinished,
                )
            )
            if not is_unfinished:
                if self.answer_suffix:
                    pieces.append(Text(self.answer_suffix, continues=True))
                pieces.append(Control(EOS))
        return pieces

    def prompt_text(self, user: str, system: str) -> str:
        """Return the text of one user turn."""
        if "{system_prompt}" not in self.template and system:
            user = fill(self.system_block, system_prompt=system) + user
        if self.is_stripped:
            user = user.strip()
        return fill(self.template, prompt=user, system_prompt=system)


PLAIN = TagFormat("{prompt}")

# Meta's reference: each turn is encoded by itself between <s> and </s>, contents are stripped after
# the system block was put in front (llama, generation.py).
LLAMA_2 = TagFormat(
    "[INST] {prompt} [/INST]",
    system_block="<<SYS>>\n{system_prompt}\n<</SYS>>\n\n",
    answer_prefix=" ",
    answer_suffix=" ",
    bos_each_turn=True,
    is_stripped=True,
)

MISTRAL = TagFormat("[INST] {prompt} [/INST]", answer_prefix=" ")

FORMATS = {"plain": PLAIN, "llama-2": LLAMA_2, "mistral": MISTRAL}


def with_template(base: PromptFormat, template: str) -> TagFormat:
    """Return a format that uses the user's own template in place of the base model's."""
    if "{prompt}" not in template:
        raise UserError(
            f"prompt_template: expected a text that holds {{prompt}}, got {template[:80]!r}"
        )
    is_tagged = template.endswith("[/INST]")
    own = TagFormat(template, answer_prefix=" " if is_tagged else "")
    if is_tagged and isinstance(base, TagFormat):
        own = replace(own, answer_suffix=base.answer_suffix, bos_each_turn=base.bos_each_turn)
    return own


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
                pieces = _join_text(pieces, content)
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
        pattern = "|".join(map(re.escape, sorted(self.special_tokens, key=len, reverse=True)))
        parts = re.split(f"({pattern})", text) if pattern else [text]
        return [
            Control(part) if number % 2 else Text(part)
            for number, part in enumerate(parts)
            if part or (has_more and number == len(parts) - 1)
        ]

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


def _join_text(pieces: list[Piece], text: str) -> list[Piece]:
    """Append text to the run of text at the end of the pieces."""
    last = pieces[-1]
    assert isinstance(last, Text)
    return [*pieces[:-1], replace(last, text=last.text + text)]


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


# Begins only where white space begins and never gives any back: a prompt of blanks takes no longer.
_TURN_START = re.compile(r"(?<!\s)\s*+(?:</s>\s*+)?(?:<s>\s*+)?\[INST\]")


def read_dialogue(prompt: str) -> Dialogue | None:
    """Read a ready dialogue with its user turns in [INST] tags; None if it is none."""
    start = _TURN_START.match(prompt)
    if start is None:
        return None
    turns = []
    for part in _TURN_START.split(prompt[start.end() :]):
        user, closed, answer = part.partition("[/INST]")
        turns.append(Turn(user.strip(), answer.strip() if closed else None))
    *finished, last = turns
    if last.answer:
        answer = prompt[prompt.rindex("[/INST]") + len("[/INST]") :].removeprefix(" ")
        return Dialogue([*finished, replace(last, answer=answer)], is_open=True)
    return Dialogue([*finished, replace(last, answer=None)])


def dialogue_of_prompt(
    prompt: str, *, prompt_format: PromptFormat, system_prompt: str | None, default_system: str
) -> Dialogue:
    """Return the dialogue that a prompt stands for: one turn, or those of a ready dialogue.

    A ready dialogue is taken as it is: of system prompts only one that was asked for is added.
    """
    if prompt_format.uses_inst_tags:
        dialogue = read_dialogue(prompt)
        if dialogue is not None:
            has_own = "<<SYS>>" in dialogue.turns[0].user
            return replace(dialogue, system="" if has_own else system_prompt or "")
    system = default_system if system_prompt is None else system_prompt
    return Dialogue([Turn(prompt.removeprefix("<s>"))], system=system)
