"""The body of fine_tuning/jobs, as the inputs of `train`."""

import json
from dataclasses import dataclass
from typing import Any

from src.service.openai.errors import bad_request
from src.service.openai.fields import Fields
from src.settings import TrainSettings

KNOWN = frozenset(
    {
        *("model", "training_file", "validation_file", "suffix", "seed", "metadata"),
        *("hyperparameters", "method", "integrations"),
    }
)
HYPERPARAMETERS = {
    "n_epochs": "num_train_epochs",
    "batch_size": "train_batch_size",
    "learning_rate_multiplier": "learning_rate",
}
"""What OpenAI calls them, and what `train` does."""
OWN_INPUTS = frozenset(
    {
        *("micro_batch_size", "learning_rate", "learning_rate_schedule", "warmup_ratio"),
        *("max_steps", "peft_method", "lora_rank", "lora_alpha", "lora_dropout"),
        *("lora_target_modules", "pack_sequences", "wrap_packed_sequences", "chunk_size"),
        *("prompt_template", "system_prompt", "prompt_loss_weight", "validation_prompt"),
        *("run_validation", "num_validation_samples", "validation_batch_size"),
    }
)
"""Inputs of `train` that OpenAI has no name for, taken among the hyperparameters."""
MAX_SUFFIX = 64
MAX_METADATA = (16, 64, 512)
"""Pairs, and the characters of a key and of a value."""


@dataclass(frozen=True)
class JobRequest:
    """What a job learns from what."""

    model: str
    training_file: str
    validation_file: str | None
    suffix: str
    inputs: dict[str, Any]
    """Of `train`, without its files."""
    hyperparameters: dict[str, Any]
    """As they are shown: `auto` is the default."""
    metadata: dict[str, str] | None

    @property
    def seed(self) -> int:
        """Return the seed that is used."""
        return self.inputs.get("seed", TrainSettings.seed)


def read_job_request(body: dict[str, Any]) -> JobRequest:
    """Return what a body asks for; raises ApiError that names the field that cannot be meant."""
    fields = Fields(body, KNOWN)
    if fields.get("integrations"):
        raise bad_request("integrations", "not supported", "unsupported_parameter")
    hyperparameters, where = _find_hyperparameters(fields)
    suffix = fields.text("suffix") or ""
    if len(suffix) > MAX_SUFFIX:
        raise fields.refuse("suffix", f"at most {MAX_SUFFIX} characters")
    inputs = _read_inputs(hyperparameters, where)
    if "seed" in fields:
        inputs["seed"] = fields.whole("seed", 0, 2**31 - 1, 0)
    return JobRequest(
        model=fields.required_text("model"),
        training_file=fields.required_text("training_file"),
        validation_file=fields.text("validation_file") or None,
        suffix=suffix,
        inputs=inputs,
        hyperparameters=dict.fromkeys(HYPERPARAMETERS, "auto")
        | {name: value for name, value in hyperparameters.items() if value is not None},
        metadata=_read_metadata(fields),
    )


def _find_hyperparameters(fields: Fields) -> tuple[dict[str, Any], str]:
    """Return them, and what their place is called."""
    method = Fields(
        fields.object("method"), ("type", "supervised", "dpo", "reinforcement"), "method."
    )
    if method.get("type") not in (None, "supervised"):
        raise method.refuse("type", "supervised, the only method there is here")
    supervised = Fields(method.object("supervised"), ("hyperparameters",), "method.supervised.")
    if nested := supervised.object("hyperparameters"):
        return nested, "method.supervised.hyperparameters."
    return fields.object("hyperparameters"), "hyperparameters."


def _read_inputs(hyperparameters: dict[str, Any], where: str) -> dict[str, Any]:
    asked = {name: value for name, value in hyperparameters.items() if value != "auto"}
    fields = Fields(asked, {*HYPERPARAMETERS, *OWN_INPUTS}, where)
    inputs = {name: value for name, value in asked.items() if name in OWN_INPUTS}
    for name in ("n_epochs", "batch_size"):
        if name in fields:
            inputs[HYPERPARAMETERS[name]] = fields.whole(name, 1, 10**6, 1)
    if "learning_rate_multiplier" in fields:
        factor = fields.number("learning_rate_multiplier", 0, 10**6, 1)
        if factor == 0:
            raise fields.refuse("learning_rate_multiplier", "a number above 0")
        inputs["learning_rate"] = factor * TrainSettings.learning_rate
    return inputs


def _read_metadata(fields: Fields) -> dict[str, str] | None:
    metadata, (most, key_length, value_length) = fields.object("metadata"), MAX_METADATA
    is_good = len(metadata) <= most and all(
        isinstance(value, str) and len(key) <= key_length and len(value) <= value_length
        for key, value in metadata.items()
    )
    if not is_good or "\\u0000" in json.dumps(metadata):
        raise fields.refuse(
            "metadata",
            f"at most {most} texts of {value_length} characters, with keys of {key_length}",
        )
    return metadata or None
