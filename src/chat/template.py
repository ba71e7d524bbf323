"""Prompt formats that are one template for each turn, and those that this project knows."""

import re
from dataclasses import dataclass, replace

from src.chat.conversation import Conversation
from src.chat.segments import BOS, EOS, Control, Segment, Text
from src.errors import UserError

FREE_CHARACTERS = 10_000
MAX_GROWTH = 4


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
    """Goes before the first user text where the template itself does not hold it."""
    answer_prefix: str = ""
    """Stands between prompt and answer and belongs to neither."""
    answer_suffix: str = ""
    """Stands between a finished answer and the end of its turn."""
    bos_each_turn: bool = False
    is_stripped: bool = False

    @property
    def uses_inst_tags(self) -> bool:
        """Whether a prompt may hold a conversation in [INST] tags."""
        return "[INST]" in self.template

    def segments(self, conversation: Conversation, *, num_target_turns: int = 0) -> list[Segment]:
        """Return the conversation as segments; the last `num_target_turns` answers are targets."""
        segments: list[Segment] = []
        for number, turn in enumerate(conversation.turns):
            if number == 0 or self.bos_each_turn:
                segments.append(Control(BOS))
            segments.append(
                Text(self.prompt_text(turn.user, conversation.system if number == 0 else ""))
            )
            if turn.answer is None:
                continue
            is_begun = conversation.is_open and number == len(conversation.turns) - 1
            is_target = number >= len(conversation.turns) - num_target_turns
            is_context = not (is_target or is_begun)
            answer = turn.answer.strip() if is_context and self.is_stripped else turn.answer
            text = self.answer_prefix + answer
            segments.append(Text(text, is_target=is_target, continues=True, ends=not is_begun))
            if not is_begun:
                if self.answer_suffix:
                    segments.append(Text(self.answer_suffix, continues=True))
                segments.append(Control(EOS))
        return segments

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


def check_template(template: str) -> None:
    """Raise UserError for a template that does not hold the prompt."""
    if "{prompt}" not in template:
        raise UserError(
            f"prompt_template: expected a text that holds {{prompt}}, got {template[:80]!r}"
        )


def with_template(base: object, template: str) -> TagFormat:
    """Return a format that uses the user's own template in place of the base model's.

    A leading <s> is left out: the beginning-of-sequence token stands before every prompt anyway.
    """
    check_template(template)
    template = template.removeprefix("<s>")
    is_tagged = template.endswith("[/INST]")
    own = TagFormat(template, answer_prefix=" " if is_tagged else "")
    if is_tagged and isinstance(base, TagFormat):
        own = replace(own, answer_suffix=base.answer_suffix, bos_each_turn=base.bos_each_turn)
    return own
