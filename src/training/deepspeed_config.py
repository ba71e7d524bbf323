"""What DeepSpeed needs to know of a run, in its own dictionary."""

from typing import Any

from src.data.batch_plan import BatchPlan

MAX_GRADIENT_NORM = 1.0
BUCKET_SIZE = 2**24
"""Gradients that are sent at a time: an adapter is small beside DeepSpeed's default of 5e8."""


def build_deepspeed_config(
    plan: BatchPlan, *, zero_stage: int, bfloat16: bool, num_parameters: int | None = None
) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a batch plan.

    Below stage 3 a rank sums up its micro-batches by itself: to DeepSpeed they are one.
    """
    bucket_size = min(BUCKET_SIZE, num_parameters or BUCKET_SIZE)
    accumulation = plan.gradient_accumulation_steps if zero_stage == 3 else 1
    return {
        "train_batch_size": plan.global_batch_size,
        "train_micro_batch_size_per_gpu": plan.global_batch_size // plan.world_size // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": MAX_GRADIENT_NORM,
        "bf16": {"enabled": bfloat16},
        "zero_optimization": {
            "stage": zero_stage,
            "overlap_comm": bfloat16,
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket_size,
            "allgather_bucket_size": bucket_size,
            "stage3_gather_16bit_weights_on_model_save": False,
        },
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
