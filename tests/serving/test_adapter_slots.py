"""Adapters of any rank keep their numbers in the slots, and none makes the others wide for long."""

import pytest
import torch

from src.errors import UserError
from src.serving.lora.slots import AdapterSlots
from src.serving.lora.weights import LoadedAdapter, LoadedModule
from src.serving.model.projections import Projection


@pytest.fixture
def slots() -> AdapterSlots:
    projections = [
        Projection(["q", "k"], [torch.nn.Linear(16, 24), torch.nn.Linear(16, 8)]),
        Projection(["o"], [torch.nn.Linear(24, 16)]),
    ]
    return AdapterSlots(projections, num_slots=3, like=torch.zeros(0), max_bytes=10**8)


def adapter(rank: int, key: str = "") -> LoadedAdapter:
    torch.manual_seed(rank)
    sizes = {"q": (16, 24), "k": (16, 8), "o": (24, 16)}
    modules = {
        name: LoadedModule(torch.randn(rank, in_), torch.randn(out, rank))
        for name, (in_, out) in sizes.items()
    }
    return LoadedAdapter(key or f"rank {rank}", modules)


def use(slots: AdapterSlots, one: LoadedAdapter) -> int:
    place = slots.acquire(one)
    assert place is not None
    check(slots, place, one)
    slots.release(place)
    return place


def check(slots: AdapterSlots, place: int, one: LoadedAdapter) -> None:
    """A slot adds what its adapter adds."""
    x = torch.randn(5, 16)
    stack = slots.stacks[0]
    assert stack is not None
    found = torch.zeros(5, 32)
    stack.add_shared_(found, x, place)
    parts = [x @ one.modules[name].lora_A.t() @ one.modules[name].lora_B.t() for name in "qk"]
    torch.testing.assert_close(found, torch.cat(parts, dim=1), rtol=1e-4, atol=1e-3)


def test_a_wide_adapter_that_is_idle_makes_room(slots: AdapterSlots):
    use(slots, adapter(8))
    before = slots.num_bytes
    use(slots, adapter(512))
    assert slots.num_bytes == 64 * before
    place = use(slots, adapter(8))
    assert slots.num_bytes == before
    use(slots, adapter(512))
    use(slots, adapter(32))
    check(slots, place, adapter(8))
    assert slots.num_bytes == 4 * before


def test_no_slot_stays_wide_when_a_wide_adapter_made_room_in_vain(slots: AdapterSlots):
    places = [slots.acquire(adapter(rank)) for rank in (8, 4)]
    before = slots.num_bytes
    use(slots, adapter(512))
    with pytest.raises(UserError, match="found rank 65536"):
        slots.acquire(adapter(2**16))
    use(slots, adapter(8))
    assert slots.num_bytes == before
    assert None not in places


def test_a_wide_adapter_in_use_stays(slots: AdapterSlots):
    wide = adapter(512)
    place = slots.acquire(wide)
    assert place is not None
    use(slots, adapter(8))
    check(slots, place, wide)
    slots.release(place)


def test_adapters_of_usual_ranks_stay_side_by_side(slots: AdapterSlots):
    for rank in (8, 64, 16, 8, 64, 16):
        use(slots, adapter(rank))
    version = slots.version
    for rank in (8, 64, 16):
        use(slots, adapter(rank))
    assert slots.version == version
    assert slots.use().misses == 3
