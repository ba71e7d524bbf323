"""A run that a device has no room for is told what would fit, and with how much memory."""

import re
from dataclasses import replace

import pytest
import torch

from src.errors import UserError
from src.training.plan.fit import fit
from src.training.plan.memory import Workload, estimate_memory
from src.training.plan.resources import Resources
from src.training.plan.room import check_room
from tests.training.test_memory import LLAMA_7B, LLAMA_70B, build_workload


def refuse(work: Workload, gigabytes: float) -> str:
    """Return what is proposed for a device of this memory."""
    free = gigabytes * 1e9
    resources = Resources(
        device=torch.device("cuda"), available=free, libraries=0.0, alone=free, dtype=torch.float16
    )
    with pytest.raises(UserError) as caught:
        check_room(work if work.shares_weights else fit(work, free), resources)
    return str(caught.value).partition("expected ")[2]


LORA_7B = build_workload(LLAMA_7B, num_tokens=8192, num_target_tokens=8192)
SHARED_70B = build_workload(
    LLAMA_70B, num_tokens=8192, num_target_tokens=8192, world_size=2, shares_weights=True,
    num_recomputed=80,
)  # fmt: skip


@pytest.mark.parametrize(
    ("work", "gigabytes", "proposed"),
    [
        (LORA_7B, 15.5, [r"peft_method=qlora", r"examples .* of at most 1,024 tokens"]),
        (LORA_7B, 12.0, [r"peft_method=qlora"]),
        (LORA_7B, 6.0, [r"peft_method=qlora with examples .* of at most 1,024 tokens"]),
        (LORA_7B, 3.0, []),
        (SHARED_70B, 85, [r"peft_method=qlora", r"micro_batch_size=\d", r"examples .*"]),
    ],
)
def test_what_would_fit_is_proposed_with_its_memory(work, gigabytes: float, proposed: list[str]):
    sentence = refuse(work, gigabytes)
    assert sentence.endswith("a smaller base model or more memory")
    ways = sentence.split(", or ")[:-1]
    assert len(ways) == len(proposed)
    for way, pattern in zip(ways, proposed, strict=True):
        found = re.fullmatch(rf"{pattern} \(([\d.]+) GB\)", way)
        assert found, way
        assert 0 < float(found[1]) <= gigabytes


def test_what_is_proposed_fits():
    """Sharded, a micro-batch is one pass: half of it takes less."""
    (size,) = re.findall(r"micro_batch_size=(\d)", refuse(SHARED_70B, 85))
    fewer = replace(SHARED_70B, num_tokens=int(size) * 2048)
    assert estimate_memory(fewer).total <= 85e9 < estimate_memory(SHARED_70B).total


def test_short_examples_are_read_one_by_one_before_a_run_is_refused():
    """Also those that would not keep a device busy alone."""
    work = build_workload(LLAMA_7B, longest_example=500)
    least = estimate_memory(replace(work, num_tokens=500, num_recomputed=32)).total
    fitted = fit(work, least / 0.92 + 1e6)
    assert (fitted.num_tokens, fitted.num_recomputed) == (500, 32)
