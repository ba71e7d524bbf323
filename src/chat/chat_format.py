"""Which prompt format a base model, a template of the user, or fine-tuned weights ask for."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from src.base_models import describe_model
from src.chat.chat_template import ChatTemplateFormat
from src.chat.conversation import Conversation, Message
from src.chat.inst_prompt import read_inst_prompt
from src.chat.template import FORMATS, PLAIN, TagFormat, with_template
from src.chat.tokenizer import Tokenizer
from src.errors import UserError

BASE_TRAIN_TEMPLATE = "{prompt}\n"
_OWN_BOS = "<s>"
PromptFormat = TagFormat | ChatTemplateFormat


class LearnedAnswer(NamedTuple):
    """An answer to learn: after these tokens of the prompt come these of the answer and its end."""

    prompt_ids: list[int]
    answer_ids: list[int]
    end_id: int


@dataclass(frozen=True)
class ChatFormat:
    """A prompt format with the tokenizer that reads it, and the system prompt that goes with it.

    Training and serving take the tokens before an answer from here, and nowhere else.
    """

    tokenizer: Tokenizer
    prompt_format: PromptFormat
    template: str | None
    """The template that stands in for the base model's own format, if one does."""
    system_prompt: str
    """Used where a prompt brings none."""
    name: str
    """What the format is, in a few words."""

    def describe(self) -> str:
        """Return the line of the plan that tells what an answer follows and what ends it."""
        own = self.prompt_format
        end = self.tokenizer.tokenizer.eos_token if own.end is None else own.end
        line = (
            f"prompt format: {self.name}; answers follow {own.generation_prompt!r} "
            f"and end with {end}"
        )
        if own.left_out.strip():
            line += f"; {own.left_out!r} before finished answers is in no prompt and not learned"
        return line

    def begins_with_bos(self, text: str) -> bool:
        """Tell whether people wrote the beginning of a sequence, which is left out of the text."""
        return self.tokenizer.bos == _OWN_BOS and text.startswith(_OWN_BOS)

    def _without_bos(self, text: str) -> str:
        return text.removeprefix(_OWN_BOS) if self.begins_with_bos(text) else text

    def of_prompt(self, prompt: str, system_prompt: str | None = None) -> Conversation:
        """Return the conversation that a prompt stands for: one turn, or those of an [INST] prompt.

        An [INST] prompt is taken as it is: of system prompts only one that was asked for is added.
        """
        if self.prompt_format.uses_inst_tags:
            conversation = read_inst_prompt(prompt)
            if conversation is not None:
                has_own = "<<SYS>>" in conversation.messages[0]["content"]
                return conversation.with_system("" if has_own else system_prompt or "")
        system = self.system_prompt if system_prompt is None else system_prompt
        return Conversation.of(self._without_bos(prompt), system=system)

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Return the tokens that the model reads before its answer, or before it goes on with one.

        Raises UserError for a conversation that the format has no place for.
        """
        return self._prompt_ids(self._protected(conversation))

    def answer_prefix(self, conversation: Conversation) -> str:
        """Return what the model writes before the text of an answer, and is no part of it."""
        return "" if conversation.is_begun else self.prompt_format.answer_prefix

    def learned_answers(self, conversation: Conversation) -> Iterator[LearnedAnswer]:
        """Yield each answer of a conversation that is to be learned, after its own prompt.

        Raises UserError for a conversation that the format has no place for.
        """
        conversation = self._protected(conversation.with_system(self.system_prompt))
        known: dict[str, list[int]] = {}
        for number, message in enumerate(conversation.messages):
            if message["role"] == "assistant" and message.get("weight") != 0:
                said = conversation.until(number + 1)
                prompt_ids = self._prompt_ids(conversation.until(number), known)
                yield self._learned(prompt_ids, self.prompt_format.learned(said))

    def learned_completion(
        self, prompt: str, completion: str, system_prompt: str | None = None
    ) -> LearnedAnswer:
        """Return a completion that is to be learned, after its prompt."""
        conversation = self._protected(self.of_prompt(prompt, system_prompt))
        text = self.tokenizer.protect(completion, is_answer=True)
        prefix = self.answer_prefix(conversation)
        return self._learned(self._prompt_ids(conversation), prefix + text)

    def learned_text(self, text: str) -> LearnedAnswer:
        """Return a text that is to be learned from its first token on."""
        answer = self.tokenizer.protect(self._without_bos(text), is_answer=True)
        bos_id, eos_id = self.tokenizer.bos_id, self.tokenizer.eos_id
        prompt_ids = [] if bos_id is None else [bos_id]
        return LearnedAnswer(prompt_ids, self.tokenizer.encode_prompt(answer), eos_id)

    def _learned(self, prompt_ids: list[int], text: str) -> LearnedAnswer:
        end = self.prompt_format.end
        end_id = None if end is None else self.tokenizer.control_id(end)
        answer_ids = self.tokenizer.encode_prompt(text, continues=True)
        return LearnedAnswer(
            prompt_ids, answer_ids, self.tokenizer.eos_id if end_id is None else end_id
        )

    def _protected(self, conversation: Conversation) -> Conversation:
        """Return the conversation without a control token in what people wrote."""

        def protect(value: Any, is_answer: bool) -> Any:
            if isinstance(value, str):
                return self.tokenizer.protect(value, is_answer=is_answer)
            if isinstance(value, list):
                return [protect(item, is_answer) for item in value]
            if isinstance(value, dict):
                return {
                    protect(key, is_answer): protect(item, is_answer) for key, item in value.items()
                }
            return value

        def read(message: Message) -> Message:
            return protect(message, message["role"] == "assistant")

        return Conversation(
            tuple(map(read, conversation.messages)), tuple(protect(list(conversation.tools), False))
        )

    def _prompt_ids(
        self, conversation: Conversation, known: dict[str, list[int]] | None = None
    ) -> list[int]:
        begun = ""
        if conversation.is_begun:
            *asked, message = conversation.messages
            conversation = conversation.until(len(asked))
            begun = self.prompt_format.answer_prefix + message["content"]
        ids = self.tokenizer.encode_prompt(self.prompt_format.prompt(conversation), known=known)
        ids += self.tokenizer.encode_prompt(begun, continues=True)
        # The model has to begin with something.
        return ids or [self.tokenizer.eos_id]


def build_chat_format(
    base_model: str,
    tokenizer: Tokenizer,
    *,
    template: str | None = None,
    system_prompt: str | None = None,
    for_training: bool = False,
) -> ChatFormat:
    """Return the base model's own format, or the one that the user asks for.

    In training, a plain prompt is ended by a line break.
    Raises UserError for a base model of several chat templates with no default.
    """
    known = describe_model(base_model)
    if known.prompt_format is not None:
        prompt_format, name = FORMATS[known.prompt_format]
    elif tokenizer.chat_format is not None:
        prompt_format, name = tokenizer.chat_format, "the base model's chat template"
    elif names := tokenizer.template_names if template is None else ():
        raise UserError(
            f"the base model has the chat templates {', '.join(names)}, and none named default: "
            "set prompt_template"
        )
    else:
        prompt_format, name = FORMATS["plain"]
    if for_training and template is None and prompt_format == PLAIN:
        template = BASE_TRAIN_TEMPLATE
    if template is not None:
        name = f"prompt_template {template!r}"
        prompt_format = with_template(prompt_format, template, bos=tokenizer.bos or _OWN_BOS)
    if isinstance(prompt_format, TagFormat):
        prompt_format = replace(prompt_format, bos=tokenizer.bos, eos=tokenizer.tokenizer.eos_token)
    if system_prompt is None:
        # A default is not forced on a template that has no place for it.
        has_place = template is None or "{system_prompt}" in template
        system_prompt = known.system_prompt if has_place else ""
    return ChatFormat(tokenizer, prompt_format, template, system_prompt, name)


def describe_answers(base_model: str, tokenizer: Tokenizer) -> dict[str, str | None]:
    """Return the text of the base model's chat template and what stands before an answer.

    There is no template where the format is another, or none of several is the default.
    """
    try:
        prompt_format = build_chat_format(base_model, tokenizer).prompt_format
        generation_prompt = prompt_format.generation_prompt
    except UserError:
        return {"chat_template": None, "generation_prompt": ""}
    templates = None
    if isinstance(prompt_format, ChatTemplateFormat):
        templates = tokenizer.tokenizer.chat_template
    text = "\n".join(templates.values()) if isinstance(templates, dict) else templates
    return {"chat_template": text, "generation_prompt": generation_prompt}


build_train_format = partial(build_chat_format, for_training=True)
