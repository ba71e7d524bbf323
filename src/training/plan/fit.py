"""What to trade for memory where a pass would take more than there is."""

from collections.abc import Iterator
from dataclasses import replace

from src.training.plan.memory import Workload, estimate_memory

FILL = 0.92
"""Share of the free memory that a plan may use; a GPU's allocator takes the rest for its gaps."""


def fit(work: Workload, available: float) -> Workload:
    """Return the workload as the memory holds it, if it does, in the fastest way.

    Fewer tokens in a pass cost least, as long as they keep the device busy; then come recomputed
    layers, as few as possible, and single examples. Dequantized 4-bit weights are for room that is
    left.
    """
    budget = available * FILL
    work = replace(work, num_recomputed=0, keeps_dequantized=False)
    least = replace(work, num_tokens=work.least_tokens)
    recomputing = [replace(least, num_recomputed=n) for n in range(1, work.shape.num_layers + 1)]
    choices = [
        *_halvings(work, work.least_tokens),
        *recomputing,
        *_halvings(recomputing[-1], min(work.num_tokens, work.longest_example)),
    ]
    found = next((w for w in choices if estimate_memory(w).total <= budget), choices[-1])
    dequantized = replace(found, keeps_dequantized=True)
    can_dequantize = work.in_4bit and not work.shares_weights and found.num_recomputed == 0
    return dequantized if can_dequantize and estimate_memory(dequantized).total <= budget else found


def _halvings(work: Workload, least_tokens: int) -> Iterator[Workload]:
    num_tokens = work.num_tokens
    while num_tokens > least_tokens:
        yield replace(work, num_tokens=num_tokens)
        num_tokens //= 2
    yield replace(work, num_tokens=least_tokens)
