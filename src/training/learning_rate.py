"""The learning rate of each step, as a share of its peak."""

import math


def learning_rate_multiplier(
    step: int, *, num_steps: int, warmup_steps: int, schedule: str
) -> float:
    """Rise linearly over the warm-up, then stay, or fall to zero at the end of the last step."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
