"""How the base model of a run reads text."""

from dataclasses import dataclass
from pathlib import Path

from src.base_models import describe_model
from src.chat.chat_format import ChatFormat, build_train_format
from src.chat.tokenizer import Tokenizer
from src.errors import UserError
from src.model.shape import check_architecture, max_sequence_length, vocabulary_rows
from src.settings import TrainSettings


@dataclass(frozen=True)
class PromptEncoder:
    """Tokenizer, prompt format and the longest sequence."""

    tokenizer: Tokenizer
    chat_format: ChatFormat
    max_seq_len: int

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the tokens of the validation prompt.

        Raises UserError where they leave no room for a reply.
        """
        ids = self.chat_format.prompt_ids(self.chat_format.of_prompt(prompt))
        if len(ids) >= self.max_seq_len:
            raise UserError(
                f"validation_prompt: expected fewer than {self.max_seq_len:,} tokens, the base "
                f"model's context; found {len(ids):,}"
            )
        return ids


def open_prompt_encoder(settings: TrainSettings) -> PromptEncoder:
    """Return the prompt encoder of a run.

    Raises UserError for a tokenizer that is not this base model's, and for a validation prompt that
    leaves no room for a reply.
    """
    folder = Path(settings.base_model_dir)
    check_architecture(folder)
    tokenizer = Tokenizer(folder)
    if num_rows := vocabulary_rows(folder):
        tokenizer.check_rows(num_rows)
    chat_format = build_train_format(
        settings.base_model,
        tokenizer,
        template=settings.prompt_template,
        system_prompt=settings.system_prompt,
    )
    max_seq_len = max_sequence_length(folder, known=describe_model(settings.base_model).max_seq_len)
    encoder = PromptEncoder(tokenizer, chat_format, max_seq_len)
    if settings.run_validation and settings.validation_prompt is not None:
        encoder.prompt_ids(settings.validation_prompt)
    return encoder
