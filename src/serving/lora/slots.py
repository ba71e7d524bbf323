"""The adapters on the device: a fixed number of slots, the least recently used one makes room."""

from collections import OrderedDict
from collections.abc import Sequence

import torch

from src.errors import UserError
from src.serving.lora.stacked import StackedLora
from src.serving.lora.weights import LoadedAdapter
from src.serving.model.projections import Projection
from src.weights.cache.cache_use import CacheUse

SMALLEST_RANK = 8
WIDE_RANK, WIDE_RATIO = 64, 4
"""Every slot is as wide as the widest adapter, and all pay for it. An idle one leaves when it is
over this rank and the others need less than so many times its width."""


class LoraSlots:
    """Copies adapters into slots beside the base model, whose weights are never written to."""

    def __init__(
        self,
        projections: Sequence[Projection],
        *,
        num_slots: int,
        like: torch.Tensor,
        max_bytes: int,
    ) -> None:
        self.num_slots = num_slots
        self._max_bytes = max_bytes
        self.version = 0
        """Another number means that the tensors lie elsewhere now."""
        self.stacks: list[StackedLora | None] = [None] * len(projections)
        self._projections = projections
        self._like = like
        self._rank = SMALLEST_RANK
        self._slot_of_key: OrderedDict[str, int] = OrderedDict()
        self._rank_of_key: dict[str, int] = {}
        self._num_users = [0] * num_slots
        self._num_hits = self._num_misses = 0

    def acquire(self, adapter: LoadedAdapter) -> int | None:
        """Return the adapter's slot, which it keeps until released; None while all are in use."""
        self._narrow(adapter)
        slot = self._slot_of_key.get(adapter.key)
        if slot is not None:
            self._num_hits += 1
        else:
            slot = self._make_room()
            if slot is None:
                return None
            self._write(slot, adapter)
            self._slot_of_key[adapter.key] = slot
            self._rank_of_key[adapter.key] = adapter.max_rank
            self._num_misses += 1
        self._slot_of_key.move_to_end(adapter.key)
        self._num_users[slot] += 1
        return slot

    def release(self, lora_slot: int) -> None:
        """Say that one of the users of a slot needs it no more."""
        self._num_users[lora_slot] -= 1

    @property
    def num_bytes(self) -> int:
        """What all slots take on the device."""
        return sum(stack.num_bytes for stack in self.stacks if stack is not None)

    def use(self) -> CacheUse:
        """Return how well the slots serve."""
        return CacheUse(len(self._slot_of_key), self.num_bytes, self._num_hits, self._num_misses)

    def _make_room(self) -> int | None:
        taken = set(self._slot_of_key.values())
        for slot in range(self.num_slots):
            if slot not in taken:
                return slot
        for key, slot in self._slot_of_key.items():
            if self._num_users[slot] == 0:
                del self._slot_of_key[key], self._rank_of_key[key]
                return slot
        return None

    def _narrow(self, next_adapter: LoadedAdapter) -> None:
        """Let go of idle adapters of far higher rank than the others."""
        limit = max(WIDE_RANK, self._rank // WIDE_RATIO)
        wide = [key for key, rank in self._rank_of_key.items() if rank > limit]
        is_used = any(self._num_users[self._slot_of_key[key]] for key in wide)
        if self._rank <= limit or next_adapter.max_rank > limit or is_used:
            return
        for key in wide:
            del self._slot_of_key[key], self._rank_of_key[key]
        rank = _width(max([SMALLEST_RANK, *self._rank_of_key.values()]))
        stacks: list[StackedLora | None] = []
        for projection, old in zip(self._projections, self.stacks, strict=True):
            if old is not None:
                new = self._new_stack(projection, rank)
                new.take(old)
                stacks.append(new)
            else:
                stacks.append(None)
        self.stacks, self._rank = stacks, rank
        self.version += 1

    def _write(self, slot: int, adapter: LoadedAdapter) -> None:
        rank = max(self._rank, _width(adapter.max_rank))
        stacks = list(self.stacks)
        needed = [
            old is not None or any(name in adapter.modules for name in projection.names)
            for old, projection in zip(stacks, self._projections, strict=True)
        ]
        self._check_room(adapter, rank, needed)
        for number, projection in enumerate(self._projections):
            old = stacks[number]
            if needed[number] and (old is None or old.rank < rank):
                new = self._new_stack(projection, rank)
                if old is not None:
                    new.take(old)
                stacks[number] = new
        # All of it or nothing: memory may have run out on the way.
        if stacks != self.stacks:
            self.stacks, self._rank = stacks, rank
            self.version += 1
        for stack in stacks:
            if stack is not None:
                stack.write(slot, adapter.modules)

    def _check_room(self, adapter: LoadedAdapter, rank: int, needed: Sequence[bool]) -> None:
        """Every slot has room for the highest rank of all, and the device only so much memory."""
        numbers_per_rank = sum(
            len(projection.names) * (projection.in_features + sum(projection.out_features))
            for projection, is_needed in zip(self._projections, needed, strict=True)
            if is_needed
        )
        num_bytes = self.num_slots * rank * numbers_per_rank * self._like.itemsize
        if num_bytes > self._max_bytes:
            raise UserError(
                f"weights: expected an adapter of a rank that {self.num_slots} adapters have room "
                f"for in {self._max_bytes / 1e9:.1f} GB, found rank {adapter.max_rank}, "
                f"which takes {num_bytes / 1e9:.1f} GB"
            )

    def _new_stack(self, projection: Projection, rank: int) -> StackedLora:
        return StackedLora(
            names=projection.names,
            in_features=projection.in_features,
            out_features=projection.out_features,
            num_slots=self.num_slots,
            rank=rank,
            like=self._like,
        )


def _width(rank: int) -> int:
    """Return the rank that slots have for adapters of a rank: the next power of two."""
    return max(SMALLEST_RANK, 1 << (rank - 1).bit_length())
