"""Adapters of any rank keep their numbers in the slots, and none makes the others wide for long."""

import pytest
import torch

from src.errors import UserError
from src.serving.lora.slots import LoraSlots
from src.serving.lora.weights import LoadedAdapter, LoadedModule
from src.serving.model.projections import Projection


@pytest.fixture
def slots() -> LoraSlots:
    projections = [
        Projection(["q", "k"], [torch.nn.Linear(16, 24), torch.nn.Linear(16, 8)]),
        Projection(["o"], [torch.nn.Linear(24, 16)]),
    ]
    return LoraSlots(projections, num_slots=3, like=torch.zeros(0), max_bytes=10**8)


def adapter(rank: int, key: str = "") -> LoadedAdapter:
    torch.manual_seed(rank)
    sizes = {"q": (16, 24), "k": (16, 8), "o": (24, 16)}
    modules = {
        name: LoadedModule(torch.randn(rank, in_), torch.randn(out, rank))
        for name, (in_, out) in sizes.items()
    }
    return LoadedAdapter(key or f"rank {rank}", modules)


def use(slots: LoraSlots, one: LoadedAdapter) -> int:
    lora_slot = slots.acquire(one)
    assert lora_slot is not None
    check(slots, lora_slot, one)
    slots.release(lora_slot)
    return lora_slot


def check(slots: LoraSlots, lora_slot: int, one: LoadedAdapter) -> None:
    """A slot adds what its adapter adds."""
    x = torch.randn(5, 16)
    stack = slots.stacks[0]
    assert stack is not None
    found = torch.zeros(5, 32)
    stack.add_shared_(found, x, lora_slot)
    parts = [x @ one.modules[name].lora_A.t() @ one.modules[name].lora_B.t() for name in "qk"]
    torch.testing.assert_close(found, torch.cat(parts, dim=1), rtol=1e-4, atol=1e-3)


def test_a_wide_adapter_that_is_idle_makes_room(slots: LoraSlots):
    use(slots, adapter(8))
    before = slots.num_bytes
    use(slots, adapter(512))
    assert slots.num_bytes == 64 * before
    lora_slot = use(slots, adapter(8))
    assert slots.num_bytes == before
    use(slots, adapter(512))
    use(slots, adapter(32))
    check(slots, lora_slot, adapter(8))
    assert slots.num_bytes == 4 * before


def test_no_slot_stays_wide_when_a_wide_adapter_made_room_in_vain(slots: LoraSlots):
    lora_slots = [slots.acquire(adapter(rank)) for rank in (8, 4)]
    before = slots.num_bytes
    use(slots, adapter(512))
    with pytest.raises(UserError, match="found rank 65536"):
        slots.acquire(adapter(2**16))
    use(slots, adapter(8))
    assert slots.num_bytes == before
    assert None not in lora_slots


def test_a_wide_adapter_in_use_stays(slots: LoraSlots):
    wide = adapter(512)
    lora_slot = slots.acquire(wide)
    assert lora_slot is not None
    use(slots, adapter(8))
    check(slots, lora_slot, wide)
    slots.release(lora_slot)


def test_adapters_of_usual_ranks_stay_side_by_side(slots: LoraSlots):
    for rank in (8, 64, 16, 8, 64, 16):
        use(slots, adapter(rank))
    version = slots.version
    for rank in (8, 64, 16):
        use(slots, adapter(rank))
    assert slots.version == version
    assert slots.use().misses == 3
