"""The adapters on the device: slots beside the base model, the least recently used makes room."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from src.errors import UserError
from src.model.shape import SMALLEST_SLOT_RANK, slot_rank
from src.serving.lora.stacked import LoraBatch, StackedLora, others_of
from src.serving.lora.weights import LoadedAdapter
from src.serving.model.layers import Projection
from src.weights.cache.cache_use import CacheUse

WIDE_RANK, WIDE_RATIO = 64, 4
"""All pay for the widest slot. Idle adapters leave when they are over this rank and the others need
less than so many times their width."""


@dataclass
class _Resident:
    """An adapter on the device."""

    slot: int
    rank: int
    projections: frozenset[int]
    """Which of the model's it adapts."""
    num_users: int = 0


class LoraSlots:
    """Copies adapters into slots, all as wide as the widest needs: the wider, the fewer they are.

    The base model's weights are never written to.
    """

    def __init__(
        self,
        projections: Sequence[Projection],
        *,
        max_slots: int,
        max_rows: int,
        like: torch.Tensor,
        max_bytes: int,
        has_fixed_shapes: bool,
    ) -> None:
        self._projections, self._like = projections, like
        self._max_slots, self._max_bytes = max_slots, max_bytes
        self._has_fixed_shapes = has_fixed_shapes
        self._rank, self._num_slots = SMALLEST_SLOT_RANK, max_slots
        self._stacks: list[StackedLora | None] = [None] * len(projections)
        self._version = 0  # Another number means that the stacks lie elsewhere now.
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        # What a captured step reads: the same memory whatever the rows are.
        self._shared = torch.zeros(1, dtype=torch.long, device=like.device)
        others = (max_rows, max_slots, 1)
        self._others = torch.ones(others, dtype=torch.bool, device=like.device)
        self.use = CacheUse(0, 0, 0, 0)

    def acquire(self, adapter: LoadedAdapter) -> int | None:
        """Return the adapter's slot, which it keeps until released; None while there is no room.

        Raises UserError for an adapter that has no room even alone.
        """
        resident = self._residents.get(adapter.key)
        is_hit = resident is not None
        if resident is None:
            resident = self._new_resident(adapter)
        if not self._make_room(adapter.key, resident):
            return None
        if not is_hit:
            taken = {other.slot for other in self._residents.values()}
            resident.slot = min(set(range(self._num_slots)) - taken)
            for stack in self._stacks:
                if stack is not None:
                    stack.write(resident.slot, adapter.modules)
            self._residents[adapter.key] = resident
        resident.num_users += 1
        self._residents.move_to_end(adapter.key)
        num_bytes = sum(stack.num_bytes for stack in self._stacks if stack is not None)
        hits, misses = self.use.hits + is_hit, self.use.misses + (not is_hit)
        self.use = CacheUse(len(self._residents), num_bytes, hits, misses)
        return resident.slot

    def release(self, slot: int) -> None:
        """Say that one of the users of a slot needs it no more."""
        next(r for r in self._residents.values() if r.slot == slot).num_users -= 1

    def of_slot(self, slot: int) -> LoraBatch:
        """Return the adapter of rows that all have the same one."""
        return LoraBatch(self._stacks, slot)

    def batch(self, slots: Sequence[int | None]) -> LoraBatch:
        """Return the adapters of the rows of a step, of which one has an adapter at least.

        With fixed shapes it lies where that of the batch before lay, which it replaces.
        """
        used = {slot for slot in slots if slot is not None}
        if len(set(slots)) == 1:
            (slot,) = used
            shared = self._shared.fill_(slot) if self._has_fixed_shapes else slot
            return LoraBatch(self._stacks, shared, key=("shared", self._version))
        width = max(used) + 1
        if self._has_fixed_shapes:
            # As many slots as there are adapters, rounded up: few graphs.
            width = min(1 << (width - 1).bit_length(), self._num_slots)
        others = others_of(slots, width, self._like.device)
        if self._has_fixed_shapes:
            others = self._others[: len(slots), :width].copy_(others)
        return LoraBatch(self._stacks, is_other=others, key=("mixed", width, self._version))

    def _new_resident(self, adapter: LoadedAdapter) -> _Resident:
        projections = frozenset(
            number
            for number, projection in enumerate(self._projections)
            if any(name in adapter.modules for name in projection.names)
        )
        num_bytes = self._bytes_per_slot(adapter.max_rank, projections)
        if num_bytes > self._max_bytes:
            raise UserError(
                f"weights: expected an adapter of a rank for which the device has room, "
                f"{self._max_bytes / 1e9:.2f} GB; found rank {adapter.max_rank}, "
                f"which takes {num_bytes / 1e9:.2f} GB"
            )
        return _Resident(-1, adapter.max_rank, projections)

    def _make_room(self, key: str, resident: _Resident) -> bool:
        """Make a slot free for an adapter, if it has none, that is wide enough for it.

        Idle adapters leave where they must; those in use keep their slots. Returns False, with
        nothing changed, where they leave no room.
        """
        stay = OrderedDict([*self._residents.items(), (key, resident)])
        limit = max(WIDE_RANK, self._rank // WIDE_RATIO)
        needed = max(r.rank for r in stay.values() if r.num_users or r is resident)
        is_too_wide = self._rank > limit >= needed
        if is_too_wide:
            stay = OrderedDict((name, r) for name, r in stay.items() if r.rank <= limit)
        while True:
            if not is_too_wide and self._has_room(stay, resident):
                break
            rank = slot_rank(max(r.rank for r in stay.values()))
            projections = frozenset[int]().union(*(r.projections for r in stay.values()))
            num_slots = self._max_bytes // self._bytes_per_slot(rank, projections)
            num_slots = min(num_slots, self._max_slots)
            if len(stay) <= num_slots and all(r.slot < num_slots for r in stay.values()):
                self._rebuild(rank, num_slots, projections)
                break
            idle = [name for name, r in stay.items() if not r.num_users and r is not resident]
            if not idle:
                return False
            del stay[min(idle, key=lambda name: stay[name].slot < num_slots)]
        self._residents = OrderedDict((n, r) for n, r in stay.items() if r.slot >= 0)
        return True

    def _has_room(self, stay: Mapping[str, _Resident], resident: _Resident) -> bool:
        """Return whether the slots as they are have room for an adapter beside those that stay."""
        return (
            len(stay) <= self._num_slots
            and resident.rank <= self._rank
            and all(self._stacks[number] is not None for number in resident.projections)
        )

    def _rebuild(self, rank: int, num_slots: int, projections: frozenset[int]) -> None:
        stacks: list[StackedLora | None] = [None] * len(self._projections)
        for number in projections:
            stacks[number] = new = StackedLora(
                self._projections[number], num_slots=num_slots, rank=rank, like=self._like
            )
            if (old := self._stacks[number]) is not None:
                new.take(old)
        # All of them or none: memory may have run out on the way.
        self._stacks, self._rank, self._num_slots = stacks, rank, num_slots
        self._version += 1

    def _bytes_per_slot(self, rank: int, projections: Iterable[int]) -> int:
        groups = (self._projections[number] for number in projections)
        numbers = sum(len(g.names) * (g.in_features + sum(g.out_features)) for g in groups)
        return slot_rank(rank) * numbers * self._like.itemsize
