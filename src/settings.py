"""What was asked for: the settings of a training run and of one prediction."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from src.errors import UserError

MAX_RANK = 1024
"""The largest that is served."""
LIMITS = {
    "num_train_epochs": (1, 10**6),
    "train_batch_size": (1, 10**6),
    "micro_batch_size": (1, 10**6),
    "num_validation_samples": (1, 10**9),
    "validation_batch_size": (1, 10**6),
    "chunk_size": (1, 2**31),
    "seed": (0, 2**63 - 1),
    "lora_rank": (1, MAX_RANK),
    "lora_alpha": (1, 10**6),
    "max_steps": (1, 10**9),
}
MAX_CHARACTERS = 10**6
MAX_PROMPT_BYTES = 500_000
"""Of the texts around a prompt together, as JSON: `training.json` holds them twice in 1 MiB."""
TEXTS = (
    *("prompt_template", "system_prompt", "validation_prompt"),
    *("lora_target_modules", "resume_from"),
)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One fine-tuning run, as every rank reads it from the same file."""

    base_model: str
    """What `BASE_MODEL` named: a key of the table, a Hub id, or a folder."""
    base_model_dir: str
    """The folder that holds the base model's files."""
    base_model_revision: str | None = None
    train_data: str
    train_data_name: str
    """The name that error messages give to the training file."""
    validation_data: str | None = None
    validation_data_name: str | None = None
    num_train_epochs: int = 3
    train_batch_size: int = 4
    """Sequences per optimizer step over all ranks together."""
    micro_batch_size: int = 4
    """Largest number of sequences in one forward and backward pass on one rank."""
    num_validation_samples: int = 50
    validation_batch_size: int = 1
    run_validation: bool = True
    validation_prompt: str | None = None
    learning_rate: float = 1e-4
    pack_sequences: bool = False
    wrap_packed_sequences: bool = False
    chunk_size: int = 2048
    peft_method: str = "lora"
    seed: int = 42
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_target_modules: str = "all-linear"
    prompt_template: str | None = None
    system_prompt: str | None = None
    prompt_loss_weight: float = 0.0
    learning_rate_schedule: str = "cosine"
    warmup_ratio: float = 0.03
    max_steps: int | None = None
    checkpoint_seconds: int = 300
    """Most time between checkpoints, where `CHECKPOINT_DIR` gives them a place."""
    checkpoint_folder: str | None = None
    """This run's folder in `CHECKPOINT_DIR`."""
    resume_from: str | None = None
    """The checkpoint to go on from."""
    save_on_cancel: bool = False

    def __post_init__(self) -> None:
        for name, (lowest, highest) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value <= highest:
                raise UserError(
                    f"{name}: expected a whole number from {lowest} to {highest:,}, got {value}"
                )
        for name in TEXTS:
            _check_text(name, getattr(self, name) or "")
        prompts = (self.prompt_template, self.system_prompt, self.validation_prompt)
        num_bytes = len(json.dumps(prompts))
        if num_bytes > MAX_PROMPT_BYTES:
            raise UserError(
                "prompt_template, system_prompt and validation_prompt: expected at most "
                f"{MAX_PROMPT_BYTES:,} bytes together (as JSON), got {num_bytes:,}"
            )
        if "\0" in (self.resume_from or ""):
            raise UserError(f"resume_from: expected a folder's name, got {self.resume_from!r:.80}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UserError(f"learning_rate: expected a number above 0, got {self.learning_rate}")
        for name in ("prompt_loss_weight", "warmup_ratio", "lora_dropout"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"{name}: expected a number from 0 to 1, got {value}")
        if self.lora_dropout == 1:
            raise UserError(
                "lora_dropout: expected a number below 1, got 1 (nothing would be learned)"
            )
        if self.prompt_template is not None and "{prompt}" not in self.prompt_template:
            raise UserError(
                "prompt_template: expected a text that holds {prompt}, got "
                f"{self.prompt_template[:80]!r}"
            )

    def save(self, path: Path) -> None:
        """Write the settings as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2))

    @classmethod
    def load(cls, path: Path) -> "TrainSettings":
        """Read settings that `save` wrote."""
        return cls(**json.loads(path.read_text()))


def _check_text(name: str, text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"{name}: expected at most {MAX_CHARACTERS:,} characters, got {len(text):,}"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}: expected Unicode text, got half of a surrogate pair") from None
