"""What DeepSpeed needs to know of a run, in its own dictionary."""

from typing import Any

from src.training.plan.plan import TrainingPlan

MAX_GRADIENT_NORM = 1.0
BUCKET_SIZE = 2**24
"""Gradients that are sent at a time: an adapter is small beside DeepSpeed's default of 5e8."""


def build_deepspeed_config(plan: TrainingPlan) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a run.

    Below stage 3 a rank sums up its micro-batches by itself: to DeepSpeed they are one.
    """
    batches, bfloat16 = plan.steps.batch_sizes, plan.machine.has_bfloat16
    bucket_size = min(BUCKET_SIZE, plan.trainable_parameters or BUCKET_SIZE)
    accumulation = batches.gradient_accumulation_steps if plan.zero_stage == 3 else 1
    micro_batch_size = batches.global_batch_size // batches.world_size // accumulation
    return {
        "train_batch_size": batches.global_batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": MAX_GRADIENT_NORM,
        "bf16": {"enabled": bfloat16},
        "zero_optimization": {
            "stage": plan.zero_stage,
            "overlap_comm": bfloat16,
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket_size,
            "allgather_bucket_size": bucket_size,
            "stage3_gather_16bit_weights_on_model_save": False,
        },
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
