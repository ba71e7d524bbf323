"""What leaves the GPUs of a run idle, and the setting that would help."""

from src.data.steps import StepPlan
from src.graphs.passes import MAX_TOKENS as LAUNCHED_TOKENS
from src.settings import TrainSettings
from src.training.plan.memory import Workload

UNPACKED_TOKENS = 8192
"""In a pass of so many, unpacking 4-bit weights takes little of the time."""
CAPTURED_TOKENS = 1024
"""In a captured pass of fewer, reading the weights takes longer than computing with them."""


def idle_gpu_warning(
    settings: TrainSettings,
    steps: StepPlan,
    work: Workload | None,
    *,
    num_tokens: int,
    can_capture: bool,
) -> str | None:
    """Return what passes that are too short wait for; None where they are long or have to be so.

    `num_tokens` are those of the training data; memory must have room for longer passes.
    """
    batch = steps.batch_sizes
    num_passes = steps.steps_per_epoch * batch.world_size * batch.gradient_accumulation_steps
    if num_passes == 1:
        return None  # it holds all examples
    if work is not None and work.in_4bit and not work.keeps_dequantized:
        enough, reason = UNPACKED_TOKENS, "the base model is unpacked from 4-bit in each"
    elif can_capture:
        enough, reason = CAPTURED_TOKENS, "the weights are read in each"
    else:
        enough, reason = LAUNCHED_TOKENS, "launching the steps of each takes longer than they do"
    tokens = num_tokens // num_passes
    if tokens >= enough:
        return None
    if batch.gradient_accumulation_steps > 1:
        setting = "micro_batch_size"
    elif settings.pack_sequences:
        setting = "chunk_size or train_batch_size"
    else:
        setting = "train_batch_size, or pack_sequences=true,"
    return (
        f"warning: passes of about {tokens:,} tokens do not fill a GPU, as {reason}: a larger "
        f"{setting} would train faster, up to about {enough:,} tokens in a pass"
    )
