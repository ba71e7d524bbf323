"""What was asked for: the settings of a training run and of one prediction."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from src.environment import TrainEnvironment
from src.errors import UserError

MAX_RANK = 1024
"""The largest that is served."""
WHOLE_NUMBERS = {
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
    "checkpoint_seconds": (0, 10**9),
}
SHARES = ("lora_dropout", "prompt_loss_weight", "warmup_ratio")
CHOICES = {
    "peft_method": ("lora", "qlora"),
    "learning_rate_schedule": ("cosine", "linear", "constant"),
}
MAX_CHARACTERS = 10**6
MAX_PROMPT_BYTES = 500_000
"""Of the texts around a prompt together, as JSON: `training.json` holds them twice in 1 MiB."""


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
    environment: TrainEnvironment = field(default_factory=TrainEnvironment)
    """What the operator of the server set."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name != "environment" and (value is not None or setting.default is not None):
                _check(setting.name, value)
        prompts = (self.prompt_template, self.system_prompt, self.validation_prompt)
        num_bytes = len(json.dumps(prompts))
        if num_bytes > MAX_PROMPT_BYTES:
            raise UserError(
                "prompt_template, system_prompt and validation_prompt: expected at most "
                f"{MAX_PROMPT_BYTES:,} bytes together (as JSON), got {num_bytes:,}"
            )
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
        return cls.from_json(json.loads(path.read_text()))

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "TrainSettings":
        """Return what `dataclasses.asdict` and JSON made of settings."""
        environment = TrainEnvironment(**record["environment"])
        return cls(**{**record, "environment": environment})


def _check(name: str, value: Any) -> None:
    """Raise UserError for a value of a setting that is out of its bounds."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in WHOLE_NUMBERS:
        lowest, highest = WHOLE_NUMBERS[name]
        is_good = is_number and isinstance(value, int) and lowest <= value <= highest
        expected = f"a whole number from {lowest} to {highest:,}"
    elif name in SHARES:
        is_good, expected = is_number and 0 <= value <= 1, "a number from 0 to 1"
    elif name == "learning_rate":
        is_good, expected = is_number and 0 < value < math.inf, "a number above 0"
    elif name in CHOICES:
        is_good, expected = value in CHOICES[name], f"one of {', '.join(CHOICES[name])}"
    elif isinstance(getattr(TrainSettings, name, None), bool):
        is_good, expected = isinstance(value, bool), "true or false"
    else:
        return _check_text(name, value)
    if not is_good:
        raise UserError(f"{name}: expected {expected}, got {value!r:.80}")


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise UserError(f"{name}: expected text, got {value!r:.80}")
    if len(value) > MAX_CHARACTERS:
        raise UserError(
            f"{name}: expected at most {MAX_CHARACTERS:,} characters, got {len(value):,}"
        )
    if name == "resume_from" and "\0" in value:
        raise UserError(f"{name}: expected a folder's name, got {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}: expected Unicode text, got half of a surrogate pair") from None
