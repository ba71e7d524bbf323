"""Adapters of any rank keep their numbers in their pages, and nobody pays for another's rank."""

import pytest
import torch

from src.errors import UserError
from src.model.core.layers import Projection
from src.model.shape import ModelShape
from src.serving.lora.slots import LoraSlots
from src.serving.lora.stacked import LoraBatch
from src.serving.lora.weights import LoadedAdapter, LoadedModule

SIZES = {"q": (16, 24), "k": (16, 8), "o": (24, 16)}
BYTES_PER_PAGE = 4 * 8 * (2 * (16 + 24 + 8) + 24 + 16)


QK, OUT = (
    Projection(list(names), [torch.nn.Linear(*SIZES[name]) for name in names])
    for names in ("qk", "o")
)


def make_slots(max_bytes: int = 10**7, max_slots: int = 3, **options: bool) -> LoraSlots:
    return LoraSlots(
        [QK, OUT], max_slots=max_slots, max_rows=5, like=torch.zeros(0), max_bytes=max_bytes,
        **{"has_fixed_shapes": False, **options},
    )  # fmt: skip


def adapter(rank: int, key: str = "", names: str = "qko") -> LoadedAdapter:
    torch.manual_seed(rank)
    modules = {
        name: LoadedModule(torch.randn(rank, in_), torch.randn(out, rank))
        for name, (in_, out) in SIZES.items()
        if name in names
    }
    return LoadedAdapter(key or f"rank {rank}", modules)


def use(slots: LoraSlots, one: LoadedAdapter) -> int:
    slot = acquire(slots, one)
    slots.release(slot)
    return slot


def acquire(slots: LoraSlots, one: LoadedAdapter) -> int:
    slot = slots.acquire(one)
    assert slot is not None
    check(slots, slot, one)
    return slot


def check(slots: LoraSlots, slot: int, one: LoadedAdapter) -> None:
    """A slot adds what its adapter adds, alone and beside a row without one."""
    x, expected = torch.randn(5, 16), torch.zeros(5, 32)
    for name, columns in (("q", slice(0, 24)), ("k", slice(24, 32))):
        if name in one.modules:
            module = one.modules[name]
            expected[:, columns] = x @ module.lora_A.t() @ module.lora_B.t()
    found = torch.zeros(5, 32)
    add(slots.of_slot(slot), found, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    found.zero_()
    add(slots.batch([slot, slot, None, slot, slot]), found, x)
    expected[2] = 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def add(batch: LoraBatch, output: torch.Tensor, x: torch.Tensor) -> None:
    update = batch.update(QK)
    if update is not None:
        update.add_([output], update.low(x))


@pytest.mark.parametrize("has_kernel", [True, False])
def test_nobody_pays_for_the_rank_of_another(has_kernel: bool):
    """One captured step serves all adapters; without a kernel, all those of a rank."""
    slots = make_slots(has_fixed_shapes=True, has_kernel=has_kernel)
    narrow = [acquire(slots, adapter(8, key=str(number))) for number in range(2)]
    keys = {slots.batch(rows).key for rows in ([narrow[0]] * 2, [narrow[1]] * 2, [*narrow, None])}
    wide = acquire(slots, adapter(512))
    for slots_of_rows in ([narrow[0]], [*narrow, None], [wide], [wide, narrow[1]]):
        slots.batch(slots_of_rows)
    assert {slots.batch([slot, slot]).key for slot in narrow} == keys
    assert ({slots.batch([wide, narrow[0]]).key} == keys) is has_kernel


def test_pages_stay_where_they_are_and_in_their_bytes():
    """So no captured step reads memory that has gone."""
    max_bytes = 40 * BYTES_PER_PAGE
    slots, places = make_slots(max_bytes, has_fixed_shapes=True), set()
    for rank in (8, 64, 16, 320, 8, 100, 264):
        use(slots, adapter(rank))
        stacks = [tensor for s in slots._stacks.values() for tensor in (s.a, s.b)]
        places.add(tuple(tensor.data_ptr() for tensor in stacks))
        assert sum(tensor.nbytes for tensor in stacks) == max_bytes
    assert len(places) == 1
    with pytest.raises(UserError, match=r"of at most rank 320, .*; found rank 321"):
        slots.acquire(adapter(321))


def test_adapters_of_usual_ranks_stay_side_by_side():
    slots = make_slots()
    for rank in (8, 64, 16, 8, 64, 16):
        use(slots, adapter(rank))
    assert slots.use.misses == 3


@pytest.mark.parametrize("has_fixed_shapes", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_slots_never_take_more_than_their_bytes_and_keep_who_is_in_use(
    seed: int, has_fixed_shapes: bool
):
    """Adapters of random ranks come and go; one that finds no room finds it when all are idle."""
    generator = torch.Generator().manual_seed(seed)

    def choose(num: int) -> int:
        return int(torch.randint(num, (1,), generator=generator))

    max_bytes, held, num_waits = 25 * BYTES_PER_PAGE, [], 0
    slots = make_slots(max_bytes, max_slots=8, has_fixed_shapes=has_fixed_shapes)
    everyone = [
        adapter(2 ** choose(8), key=str(number), names=("qko", "q", "o")[choose(3)])
        for number in range(20)
    ]
    for _ in range(150):
        one = everyone[choose(len(everyone))]
        slot = slots.acquire(one)
        if slot is None:
            assert held
            num_waits += 1
        else:
            held.append((slot, one))
        if slot is None or len(held) > 6:
            slots.release(held.pop(choose(len(held)))[0])
        assert slots.use.bytes <= max_bytes
        for slot, one in held:
            check(slots, slot, one)
    assert num_waits > 0
    while held:
        slots.release(held.pop()[0])
    for one in everyone:
        use(slots, one)


class Shape:
    """A linear layer without weights."""

    def __init__(self, in_features: int, out_features: int) -> None:
        self.in_features, self.out_features = in_features, out_features


def llama_2_7b_slots(max_bytes: float) -> LoraSlots:
    hidden, inner = 4096, 11008
    groups = {
        ("q_proj", "k_proj", "v_proj"): [Shape(hidden, hidden)] * 3,
        ("o_proj",): [Shape(hidden, hidden)],
        ("gate_proj", "up_proj"): [Shape(hidden, inner)] * 2,
        ("down_proj",): [Shape(inner, hidden)],
    }
    projections = [
        Projection([f"{layer}.{name}" for name in names], shapes)
        for layer in range(32)
        for names, shapes in groups.items()
    ]
    like = torch.zeros(0, dtype=torch.bfloat16, device="meta")
    return LoraSlots(
        projections, max_slots=16, max_rows=3, like=like, max_bytes=int(max_bytes),
        has_fixed_shapes=False,
    )  # fmt: skip


def llama_2_7b_adapter(rank: int, key: object) -> LoadedAdapter:
    hidden, inner = 4096, 11008
    sizes = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (hidden, hidden))
    sizes |= {"gate_proj": (hidden, inner), "up_proj": (hidden, inner)}
    sizes |= {"down_proj": (inner, hidden)}
    modules = {
        f"{layer}.{name}": LoadedModule(
            torch.empty(rank, in_, device="meta"), torch.empty(out, rank, device="meta")
        )
        for layer in range(32)
        for name, (in_, out) in sizes.items()
    }
    return LoadedAdapter(f"{rank}, {key}", modules)


@pytest.mark.parametrize(("rank", "num_at_once"), [(8, 16), (16, 11), (64, 2), (128, 1)])
def test_llama_2_7b_on_24_gb_serves_fewer_adapters_the_wider_they_are(rank: int, num_at_once: int):
    """There 1.4 GB are left for adapters; slots of these shapes, without their numbers."""
    slots = llama_2_7b_slots(1.43e9)
    held = 0
    while slots.acquire(llama_2_7b_adapter(rank, held)) is not None:
        held += 1
    assert held == num_at_once
    assert slots.use.bytes <= 1.43e9


def test_what_fits_not_even_alone_is_refused_with_what_would_fit():
    with pytest.raises(UserError, match=r"at most rank 176, .* has room; found rank 256"):
        llama_2_7b_slots(1.43e9).acquire(llama_2_7b_adapter(256, "alone"))


@pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj", "up_proj", "o_proj,down_proj"])
@pytest.mark.parametrize("rank", [1, 8, 13, 64, 100])
def test_training_knows_what_an_adapter_takes_when_it_is_served(targets: str, rank: int):
    shape = ModelShape(
        hidden_size=4096, intermediate_size=11008, num_layers=32, num_heads=32,
        num_key_value_heads=32, head_size=128, vocab_size=32000, is_tied=False,
    )  # fmt: skip
    one = llama_2_7b_adapter(rank, "served")
    names = shape.adapted(targets)
    modules = {name: m for name, m in one.modules.items() if name.split(".")[1] in names}
    num_bytes = shape.served_adapter_bytes(targets, rank, itemsize=2)
    slots = llama_2_7b_slots(num_bytes)
    assert slots.acquire(LoadedAdapter("served", modules)) == 0
    assert slots.use.bytes == num_bytes
    with pytest.raises(UserError, match=f"found rank {rank}"):
        llama_2_7b_slots(num_bytes - 1).acquire(LoadedAdapter("served", modules))
