"""How the base model of a run reads text."""

from dataclasses import dataclass
from pathlib import Path

from src.base_models import KNOWN_MODELS
from src.chat.chat_format import Speech, build_train_speech
from src.chat.tokenizer import Tokenizer
from src.errors import UserError
from src.model.shape import context_length
from src.settings import TrainSettings


@dataclass(frozen=True)
class Reader:
    """Tokenizer, prompt format and the longest sequence."""

    tokenizer: Tokenizer
    speech: Speech
    context: int

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the tokens of the validation prompt.

        Raises UserError where they leave no room for a reply.
        """
        pieces = self.speech.prompt_format.pieces(self.speech.of_prompt(prompt))
        ids = self.tokenizer.encode_pieces(pieces)
        if len(ids) >= self.context:
            raise UserError(
                f"validation_prompt: expected fewer than {self.context:,} tokens, the base model's "
                f"context; found {len(ids):,}"
            )
        return ids


def open_reader(settings: TrainSettings) -> Reader:
    """Return the reader of a run's base model.

    Raises UserError for a validation prompt that leaves no room for a reply.
    """
    folder = Path(settings.base_model_dir)
    known = KNOWN_MODELS.get(settings.base_model)
    tokenizer = Tokenizer(folder)
    speech = build_train_speech(
        settings.base_model,
        tokenizer,
        template=settings.prompt_template,
        system_prompt=settings.system_prompt,
    )
    context = context_length(folder, known=known.context if known else None)
    reader = Reader(tokenizer, speech, context)
    if settings.run_validation and settings.validation_prompt is not None:
        reader.prompt_ids(settings.validation_prompt)
    return reader
