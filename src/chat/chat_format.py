"""Which prompt format a base model, a template of the user, or fine-tuned weights ask for."""

from dataclasses import dataclass, replace
from functools import partial

from src.base_models import describe_model
from src.chat.chat_template import ChatTemplateFormat
from src.chat.conversation import Conversation, Turn
from src.chat.inst_prompt import read_inst_prompt
from src.chat.template import FORMATS, PLAIN, TagFormat, with_template
from src.chat.tokenizer import Tokenizer

BASE_TRAIN_TEMPLATE = "{prompt}\n"
PromptFormat = TagFormat | ChatTemplateFormat


@dataclass(frozen=True)
class ChatFormat:
    """A prompt format with the system prompt that goes with it."""

    prompt_format: PromptFormat
    template: str | None
    """The template that stands in for the base model's own format, if one does."""
    system_prompt: str
    """Used where a prompt brings none."""

    def of_prompt(self, prompt: str, system_prompt: str | None = None) -> Conversation:
        """Return the conversation that a prompt stands for: one turn, or those of an [INST] prompt.

        An [INST] prompt is taken as it is: of system prompts only one that was asked for is added.
        """
        if self.prompt_format.uses_inst_tags:
            conversation = read_inst_prompt(prompt)
            if conversation is not None:
                has_own = "<<SYS>>" in conversation.turns[0].user
                return replace(conversation, system="" if has_own else system_prompt or "")
        system = self.system_prompt if system_prompt is None else system_prompt
        return Conversation([Turn(prompt.removeprefix("<s>"))], system=system)


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
    """
    known = describe_model(base_model)
    if known.prompt_format is None:
        prompt_format = tokenizer.chat_format or PLAIN
    else:
        prompt_format = FORMATS[known.prompt_format]
    if for_training and template is None and prompt_format == PLAIN:
        template = BASE_TRAIN_TEMPLATE
    if template is not None:
        prompt_format = with_template(prompt_format, template)
    if system_prompt is None:
        # A default is not forced on a template that has no place for it.
        has_place = template is None or "{system_prompt}" in template
        system_prompt = known.system_prompt if has_place else ""
    return ChatFormat(prompt_format, template, system_prompt)


build_train_format = partial(build_chat_format, for_training=True)
