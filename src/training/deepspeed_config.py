"""What DeepSpeed needs to know of a run, in its own dictionary."""

from typing import Any

from src.data.batch_plan import BatchPlan

MAX_GRADIENT_NORM = 1.0


def choose_zero_stage(*, base_bytes: int, device_bytes: int | None, in_4bit: bool) -> int:
    """Return 3 for a base model that leaves no room on one GPU, else 2."""
    if device_bytes is None or in_4bit:
        return 2
    return 3 if base_bytes > 0.8 * device_bytes else 2


def build_deepspeed_config(plan: BatchPlan, *, zero_stage: int, bfloat16: bool) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a batch plan.

    Below stage 3 a rank sums up its micro-batches by itself: to DeepSpeed they are one.
    """
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
            "stage3_gather_16bit_weights_on_model_save": False,
        },
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
