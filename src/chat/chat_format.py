"""Which prompt format a base model, a template of the user, or fine-tuned weights ask for."""

from dataclasses import dataclass

from src.base_models import KNOWN_MODELS
from src.chat.chat_template import ChatTemplateFormat
from src.chat.conversation import Conversation, Turn
from src.chat.inst_prompt import conversation_of_prompt
from src.chat.segments import PromptFormat
from src.chat.template import FORMATS, PLAIN, with_template
from src.chat.tokenizer import Tokenizer

BASE_TRAIN_TEMPLATE = "{prompt}\n"


@dataclass(frozen=True)
class ChatFormat:
    """A prompt format with the system prompt that goes with it."""

    prompt_format: PromptFormat
    template: str | None
    """The template that stands in for the base model's own format, if one does."""
    system_prompt: str
    """Used where a prompt brings none."""

    def of_prompt(self, prompt: str, system_prompt: str | None = None) -> Conversation:
        """Return the conversation that a prompt stands for."""
        return conversation_of_prompt(
            prompt,
            prompt_format=self.prompt_format,
            system_prompt=system_prompt,
            default_system=self.system_prompt,
        )


def base_format(base_model: str, tokenizer: Tokenizer) -> PromptFormat:
    """Return the base model's own format: of the table, else its chat template, else none."""
    known = KNOWN_MODELS.get(base_model)
    if known is not None:
        return FORMATS[known.prompt_format]
    if tokenizer.chat_template is not None:
        return _chat_format(tokenizer)
    return PLAIN


def build_chat_format(
    base_model: str,
    tokenizer: Tokenizer,
    *,
    template: str | None = None,
    system_prompt: str | None = None,
) -> ChatFormat:
    """Return how to speak to the base model, with the user's own wishes where there are any."""
    own = base_format(base_model, tokenizer)
    prompt_format = own if template is None else with_template(own, template)
    if system_prompt is None:
        known = KNOWN_MODELS.get(base_model)
        # A default is not forced on a template that has no place for it.
        has_place = template is None or "{system_prompt}" in template
        system_prompt = known.system_prompt if known is not None and has_place else ""
    return ChatFormat(prompt_format, template, system_prompt)


def build_train_format(
    base_model: str,
    tokenizer: Tokenizer,
    *,
    template: str | None = None,
    system_prompt: str | None = None,
) -> ChatFormat:
    """Return the format of training: `build_chat_format`, a plain prompt ended by a line break."""
    if template is None and base_format(base_model, tokenizer) == PLAIN:
        template = BASE_TRAIN_TEMPLATE
    return build_chat_format(base_model, tokenizer, template=template, system_prompt=system_prompt)


def _chat_format(tokenizer: Tokenizer) -> ChatTemplateFormat:
    def render(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        if messages[0]["role"] == "system" and not supports_system:
            system, user, *rest = messages
            user = {"role": "user", "content": f"{system['content']}\n\n{user['content']}"}
            messages = [user, *rest]
        return tokenizer.render_chat(messages, add_generation_prompt)

    supports_system = True
    chat = ChatTemplateFormat(render, tokenizer.special_tokens)
    try:
        chat.segments(Conversation([Turn("a")], system="b"))
    except Exception:  # a template refuses a system message with an error of its own choosing
        supports_system = False
    return chat
