"""The refusal of a run that a device has no room for, with the settings that would fit."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from src.errors import UserError
from src.files.printable import show_bytes
from src.model.core.float8 import check_device
from src.model.shape import ADAPTER_SHARE, ModelShape
from src.training.plan.fit import fit
from src.training.plan.memory import Workload, estimate_memory
from src.training.plan.resources import Resources

LEAST_TOKENS = 32
"""Shorter examples are not proposed."""


def check_room(work: Workload, resources: Resources) -> None:
    """Refuse a run whose peak is more than its device has, however it is made smaller."""
    least = estimate_memory(work).total + resources.libraries
    if least > resources.available:
        ways = [*_ways_out(work, resources), "a smaller base model or more memory"]
        raise UserError(
            f"the training takes at least {show_bytes(least)}, and a {resources.kind} has "
            f"{show_bytes(resources.available)} of free memory; expected {', or '.join(ways)}"
        )


def check_rank(work: Workload, resources: Resources) -> None:
    """Refuse an adapter that a device like this one could not serve beside the base model."""
    room = resources.room - estimate_memory(work).base_model
    if room <= 0:
        return  # the base model alone has no room
    room *= ADAPTER_SHARE if resources.on_gpus else ADAPTER_SHARE * work.world_size
    # A GPU's pages have room for every layer.
    layers = "all-linear" if resources.on_gpus else work.target_modules
    size = work.shape.served_adapter_bytes(layers, work.lora_rank, itemsize=work.element_bytes)
    if size > room:
        raise UserError(
            f"lora_rank: expected an adapter that can be served in {show_bytes(room)} of a "
            f"{resources.kind}'s memory, found rank {work.lora_rank} of {show_bytes(size)}"
        )


def check_sharing(shape: ModelShape) -> None:
    """Refuse ZeRO-3 for weights that are not read by the module that has them."""
    if shape.delta is not None:
        raise UserError(
            "ZERO_STAGE: expected 2 for a base model with gated delta layers, whose convolutions "
            "DeepSpeed cannot share out; found 3"
        )


def check_float8(shape: ModelShape | None, zero_stage: int, device: torch.device) -> None:
    """Refuse float8 for weights that our decoder does not multiply with, and on such a GPU."""
    if zero_stage == 3:
        where = "under ZeRO-3, where ranks share out the base model"
    elif shape is None:
        where = "for a base model that trains in transformers' own layers"
    else:
        return check_device(device)
    raise UserError(f"BASE_WEIGHTS: expected none {where}, found 'fp8'")


def _ways_out(work: Workload, resources: Resources) -> list[str]:
    """Return each change that is enough by itself, with its memory; where none is, two together."""
    found: list[str] = []

    def fits(change: str, changed: Workload, available: float = resources.available) -> bool:
        room = available - resources.libraries
        # Under ZeRO-3 a micro-batch is one pass, and every layer is recomputed already.
        needed = estimate_memory(changed if changed.shares_weights else fit(changed, room)).total
        if needed <= room:
            found.append(f"{change} ({show_bytes(needed + resources.libraries)})")
        return needed <= room

    in_4bit = replace(work, in_4bit=True, shares_weights=False)
    lengths = list(_halves(work.longest_example, LEAST_TOKENS))
    shorter = "examples (or a chunk_size) of at most {:,} tokens"
    if not work.in_4bit:
        fits("peft_method=qlora", in_4bit)
    fits("NUM_PROCESSES=1", replace(work, world_size=1), resources.alone)
    if work.shares_weights:
        for size in _halves(work.num_tokens // work.longest_example, 1):
            fewer = replace(work, num_tokens=size * work.longest_example)
            if fits(f"micro_batch_size={size}", fewer):
                break
    any(fits(shorter.format(n), _shortened(work, n)) for n in lengths)
    if not found and not work.in_4bit:
        both = f"peft_method=qlora with {shorter}"
        any(fits(both.format(n), _shortened(in_4bit, n)) for n in lengths)
    return found


def _halves(number: int, least: int) -> Iterator[int]:
    """Yield half of a number, half of that and so on, as long as it is not below the least."""
    while (number := number // 2) >= least:
        yield number


def _shortened(work: Workload, num_tokens: int) -> Workload:
    return replace(
        work,
        num_tokens=num_tokens,
        num_target_tokens=min(num_tokens, work.num_target_tokens),
        longest_example=num_tokens,
    )
