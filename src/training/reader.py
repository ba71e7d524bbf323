"""How the base model of a run reads text."""

from dataclasses import dataclass
from pathlib import Path

from src.base_models import KNOWN_MODELS
from src.model.shape import context_length
from src.settings import TrainSettings
from src.text.formats import Speech, build_train_speech
from src.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Reader:
    """Tokenizer, prompt format and the longest sequence."""

    tokenizer: Tokenizer
    speech: Speech
    context: int


def open_reader(settings: TrainSettings) -> Reader:
    """Return the reader of a run's base model."""
    folder = Path(settings.base_model_dir)
    known = KNOWN_MODELS.get(settings.base_model)
    tokenizer = Tokenizer(folder)
    speech = build_train_speech(
        settings.base_model,
        tokenizer,
        template=settings.prompt_template,
        system_prompt=settings.system_prompt,
    )
    return Reader(tokenizer, speech, context_length(folder, known=known.context if known else None))
