"""Prompt formats that are one template for each turn, and those that this project knows."""

import re
from dataclasses import dataclass, replace

from src.chat.conversation import Conversation, Message, reasoning_of
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
    bos: str = ""
    """The tokenizer's control tokens."""
    eos: str = ""
    end: None = None
    """The control token that ends an answer: end-of-sequence."""
    left_out: str = ""
    is_thinking: bool = False
    loses_text_of_calls: bool = False

    @property
    def uses_inst_tags(self) -> bool:
        """Whether a prompt may hold a conversation in [INST] tags."""
        return "[INST]" in self.template

    @property
    def generation_prompt(self) -> str:
        """What stands before an answer."""
        return self.template.rpartition("{prompt}")[2] + self.answer_prefix

    def prompt(self, conversation: Conversation) -> str:
        """Return what the model reads before the answer to the last message.

        Raises UserError for messages that only a chat template has a place for.
        """
        text, system, begins = self.bos, conversation.system or "", True
        for message in conversation.messages:
            _check_plain(message, conversation)
            if message["role"] == "user":
                if self.bos_each_turn and not begins:
                    text += self.bos
                text += self._turn(message["content"], system)
                system, begins = "", False
            elif message["role"] == "assistant":
                answer = message["content"].strip() if self.is_stripped else message["content"]
                text += self.answer_prefix + answer + self.answer_suffix + self.eos
        return text

    def learned(self, conversation: Conversation) -> str:
        """Return what is learned of the last message, which is the assistant's."""
        message = conversation.messages[-1]
        _check_plain(message, conversation)
        return self.answer_prefix + message["content"]

    def _turn(self, user: str, system: str) -> str:
        if "{system_prompt}" not in self.template and system:
            user = fill(self.system_block, system_prompt=system) + user
        if self.is_stripped:
            user = user.strip()
        return fill(self.template, prompt=user, system_prompt=system)


def _check_plain(message: Message, conversation: Conversation) -> None:
    has_calls = message.get("tool_calls") or message["role"] == "tool" or conversation.tools
    for found, name in (
        (has_calls, "tools and calls of them"),
        (reasoning_of(message), "reasoning_content"),
    ):
        if found:
            raise UserError(f"only a chat template has a place for {name}, found none in use")


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

FORMATS = {
    "plain": (PLAIN, "the prompt as it is"),
    "llama-2": (LLAMA_2, "Llama 2 chat"),
    "mistral": (MISTRAL, "Mistral instruct"),
}
"""With their names for people."""


def warn_of_escapes(name: str, text: str | None) -> str:
    """Return a warning for a text with a backslash and an n where a line break may be meant."""
    if not text or "\\n" not in text:
        return ""
    return (
        f"warning: {name} holds a backslash and an n, which are no line break; in a shell write "
        f"{name}=$'...\\n...'"
    )


def check_template(template: str) -> None:
    """Raise UserError for a template that does not hold the prompt."""
    if "{prompt}" not in template:
        raise UserError(
            f"prompt_template: expected a text that holds {{prompt}}, got {template[:80]!r}"
        )


def with_template(base: object, template: str, *, bos: str = "<s>") -> TagFormat:
    """Return a format that uses the user's own template in place of the base model's.

    A leading `bos` or <s> is left out: it stands before every prompt anyway.
    """
    check_template(template)
    template = template.removeprefix(bos).removeprefix("<s>")
    is_tagged = template.endswith("[/INST]")
    own = TagFormat(template, answer_prefix=" " if is_tagged else "")
    if is_tagged and isinstance(base, TagFormat):
        own = replace(own, answer_suffix=base.answer_suffix, bos_each_turn=base.bos_each_turn)
    return own
