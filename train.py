"""The inputs of a training: from a JSONL file to a weights archive."""

from typing import Any

from cog import BaseModel, Input, Path, current_scope

from src.process_tree import end_with_server
from src.training.run import run_training


class TrainingOutput(BaseModel):
    weights: Path | None


def train(
    train_data: Path = Input(description="JSONL file (also .jsonl.gz), one example a line"),
    num_train_epochs: int = Input(
        description="Passes over the whole training set", default=3, ge=1
    ),
    train_batch_size: int = Input(
        description="Global batch size: sequences per optimizer step over all GPUs", default=4, ge=1
    ),
    micro_batch_size: int = Input(
        description="Most sequences in one forward and backward pass on one GPU", default=4, ge=1
    ),
    num_validation_samples: int = Input(
        description="Examples to evaluate on, from the tail of the training data or the head of the validation data",
        default=50,
        ge=1,
    ),
    validation_data: Path | None = Input(
        description="JSONL file like train_data, to evaluate on", default=None
    ),
    validation_batch_size: int = Input(
        description="Sequences per GPU during evaluation", default=1, ge=1
    ),
    run_validation: bool = Input(description="Evaluate during training", default=True),
    validation_prompt: str | None = Input(
        description="A reply to this prompt is generated and logged at each validation",
        default=None,
    ),
    learning_rate: float = Input(description="Peak learning rate, above 0", default=1e-4, ge=0),
    pack_sequences: bool = Input(
        description="Pack several examples into one sequence of up to chunk_size tokens",
        default=False,
    ),
    wrap_packed_sequences: bool = Input(
        description="With packing: cut the token stream into chunks of exactly chunk_size",
        default=False,
    ),
    chunk_size: int = Input(
        description="Length of a packed sequence in tokens", default=2048, ge=1
    ),
    peft_method: str = Input(
        description="lora, or qlora: the base model is held in 4-bit",
        default="lora",
        choices=["lora", "qlora"],
    ),
    seed: int = Input(description="Random seed", default=42),
    lora_rank: int = Input(description="Rank of the LoRA matrices", default=8, ge=1),
    lora_alpha: int = Input(description="Updates are scaled by alpha / rank", default=16, ge=1),
    lora_dropout: float = Input(
        description="Dropout before the LoRA matrices", default=0.05, ge=0, le=1
    ),
    lora_target_modules: str = Input(
        description="all-linear, or comma-separated names of the modules to adapt",
        default="all-linear",
    ),
    prompt_template: str | None = Input(
        description="How prompt and system prompt become the text the model reads, with {prompt} and {system_prompt}",
        default=None,
    ),
    system_prompt: str | None = Input(
        description="System prompt of the training prompts, by default the base model's",
        default=None,
    ),
    prompt_loss_weight: float = Input(
        description="Weight of prompt tokens in the loss, 0 learns completions only",
        default=0.0,
        ge=0,
        le=1,
    ),
    learning_rate_schedule: str = Input(
        description="Learning rate after the warm-up",
        default="cosine",
        choices=["cosine", "linear", "constant"],
    ),
    warmup_ratio: float = Input(
        description="Share of the steps that warm up", default=0.03, ge=0, le=1
    ),
    max_steps: int | None = Input(
        description="Stop after that many optimizer steps", default=None, ge=1
    ),
    checkpoint_seconds: int = Input(
        description="Most seconds between checkpoints, where the server has a CHECKPOINT_DIR",
        default=300,
        ge=1,
    ),
    resume_from: str | None = Input(
        description="A checkpoint folder to go on from, or auto for this run's newest one",
        default=None,
    ),
    save_on_cancel: bool = Input(
        description="Keep the adapter so far in CHECKPOINT_DIR when the training is canceled",
        default=False,
    ),
) -> TrainingOutput:
    """Fine-tune the base model on the examples and return the adapter as one archive.

    Of several machines only the one with the file train_data returns it.
    """
    inputs = locals()
    end_with_server()
    scope: Any = current_scope()
    weights = run_training(inputs, record_metric=scope.record_metric)
    return TrainingOutput(weights=weights and Path(weights))  # type: ignore[call-arg]
