"""The adapters on the device: pages beside the base model, the least recently used makes room.

An adapter takes one page for each `PAGE_RANK` of its rank, anywhere (as in S-LoRA, Sheng et al.
2023). The memory of pages is taken once, at its largest: no captured step has to be captured anew
when an adapter comes, whatever its rank, and nobody pays for the rank of another who is not there.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

from src.errors import UserError
from src.model.core.layers import Projection
from src.model.shape import PAGE_RANK, num_pages_of
from src.serving.lora.rows import MAX_PAGES, RowsUpdate
from src.serving.lora.stacked import LoraBatch, PagesUpdate, StackedLora
from src.serving.lora.weights import LoadedAdapter
from src.settings import MAX_RANK
from src.transfer import to_device
from src.weights.cache.cache_use import CacheUse

USUAL_RANK = 64
"""There are pages for so high a rank in every slot, if the memory has room for them."""
GATHER_COST = 3
"""Pages that are gathered are read, written and read again."""


@dataclass
class _Resident:
    """An adapter on the device."""

    slot: int
    pages: list[int]
    projections: frozenset[Projection]
    """Which of the model's it adapts."""
    num_bytes: int
    num_users: int = 0


class LoraSlots:
    """Copies adapters into pages; the base model's weights are never written to."""

    def __init__(
        self,
        projections: Sequence[Projection],
        *,
        max_slots: int,
        max_rows: int,
        like: torch.Tensor,
        max_bytes: int,
        has_fixed_shapes: bool,
        has_kernel: bool = True,
    ) -> None:
        """With fixed shapes, steps find the pages of each row on the device, by a kernel or not."""
        self._projections, self._like, self._has_kernel = projections, like, has_kernel
        self._max_slots, self._max_bytes = max_slots, max_bytes
        self._has_fixed_shapes = has_fixed_shapes
        self._page_bytes = {
            p: PAGE_RANK * len(p.names) * (p.in_features + sum(p.out_features)) * like.itemsize
            for p in projections
        }
        self._num_pages = max(max_slots * USUAL_RANK, MAX_RANK) // PAGE_RANK
        if has_fixed_shapes:  # else memory is taken as pages are written
            self._num_pages = min(self._num_pages, max_bytes // sum(self._page_bytes.values()))
        self._stacks: dict[Projection, StackedLora] = {}
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        # What a captured step reads: the same memory whatever the rows are.
        self._table = torch.zeros(max_rows * MAX_PAGES, dtype=torch.int32, device=like.device)
        self.use = CacheUse(0, 0, 0, 0)

    def acquire(self, adapter: LoadedAdapter) -> int | None:
        """Return the adapter's slot, which it keeps until released; None while there is no room.

        Raises UserError for an adapter that has no room even alone.
        """
        resident = self._residents.get(adapter.key)
        is_hit = resident is not None
        if resident is None:
            resident = self._place(adapter)
            if resident is None:
                return None
            self._residents[adapter.key] = resident
        resident.num_users += 1
        self._residents.move_to_end(adapter.key)
        num_bytes = sum(resident.num_bytes for resident in self._residents.values())
        hits, misses = self.use.hits + is_hit, self.use.misses + (not is_hit)
        self.use = CacheUse(len(self._residents), num_bytes, hits, misses)
        return resident.slot

    def release(self, slot: int) -> None:
        """Say that one of the users of a slot needs it no more."""
        self._of_slot(slot).num_users -= 1

    def of_slot(self, slot: int) -> LoraBatch:
        """Return the adapter of rows that all have the same one."""
        resident = self._of_slot(slot)
        first, last = resident.pages[0], resident.pages[-1]
        pages: slice | torch.Tensor = slice(first, last + 1)
        if last - first >= len(resident.pages):
            pages = torch.tensor(resident.pages, device=self._like.device)
        return self._of_pages(resident.projections, pages)

    def batch(self, slots: Sequence[int | None]) -> LoraBatch | None:
        """Return the adapters of the rows of a step; None where no row has one.

        With fixed shapes it lies where that of the batch before lay, which it replaces.
        """
        if not self._has_fixed_shapes or not any(slot is not None for slot in slots):
            return self.of_tokens(slots)
        return self._by_table([[] if n is None else self._of_slot(n).pages for n in slots])

    def of_tokens(self, slots: Sequence[int | None]) -> LoraBatch | None:
        """Return the adapters of the tokens of some prompts; None where none has one."""
        used = {slot for slot in slots if slot is not None}
        if not used:
            return None
        residents = {slot: self._of_slot(slot) for slot in used}
        of_token = [[] if slot is None else residents[slot].pages for slot in slots]
        if len(set(slots)) == 1:
            return replace(self.of_slot(*used), pages=of_token)
        owners = {page: slot for slot, resident in residents.items() for page in resident.pages}
        projections = frozenset[Projection]().union(*(r.projections for r in residents.values()))
        device, ids = self._like.device, list(range(max(owners) + 1))
        pages: slice | torch.Tensor = slice(0, len(ids))
        if len(ids) > GATHER_COST * len(owners):
            ids = list(owners)
            pages = torch.tensor(ids, device=device)
        is_other = others_of(slots, [owners.get(page) for page in ids], device)
        return replace(self._of_pages(projections, pages, is_other), pages=of_token)

    def _of_pages(
        self,
        projections: Collection[Projection],
        pages: slice | torch.Tensor,
        is_other: torch.Tensor | None = None,
    ) -> LoraBatch:
        stacks = {projection: self._stacks[projection] for projection in projections}
        return LoraBatch(stacks, lambda stack: PagesUpdate(*stack.read(pages), is_other))

    def _by_table(self, pages: Sequence[Sequence[int]]) -> LoraBatch:
        """Return the adapters of rows that have these pages, each in any of the projections."""
        width = MAX_PAGES
        if not self._has_kernel:  # plain steps pay for the width
            width = 1 << (max(map(len, pages)) - 1).bit_length()
        table = torch.full((len(pages), width), -1, dtype=torch.int32)
        for row, own in zip(table, pages, strict=True):
            row[: len(own)] = torch.tensor(own)
        held = self._table[: table.numel()].view(table.shape)
        held.copy_(to_device(table, held.device))
        return LoraBatch(
            self._stacks,
            lambda stack: RowsUpdate(stack.a, stack.b, stack.ends, held),
            key=width,
        )

    def _place(self, adapter: LoadedAdapter) -> _Resident | None:
        """Write an adapter into free pages; None, with nothing changed, while they are too few."""
        projections = frozenset(
            projection
            for projection in self._projections
            if self._has_fixed_shapes or any(name in adapter.modules for name in projection.names)
        )
        num_pages = num_pages_of(adapter.max_rank)
        page_bytes = sum(self._page_bytes[projection] for projection in projections)
        most = min(self._num_pages, self._max_bytes // page_bytes)
        if num_pages > most:
            raise UserError(
                f"weights: expected an adapter of at most rank {most * PAGE_RANK:,}, for which the "
                f"device has room; found rank {adapter.max_rank:,}"
            )
        num_bytes = num_pages * page_bytes
        stay = OrderedDict(self._residents)
        idle = (key for key, resident in self._residents.items() if not resident.num_users)
        while not self._has_room(stay.values(), num_pages, num_bytes):
            key = next(idle, None)
            if key is None:
                return None
            del stay[key]
        taken = {page for resident in stay.values() for page in resident.pages}
        pages = [page for page in range(self._num_pages) if page not in taken][:num_pages]
        self._residents = stay
        for projection in projections - self._stacks.keys():
            self._stacks[projection] = StackedLora(
                projection, num_pages=self._num_pages, like=self._like
            )
        modules = adapter.on_device(self._like.device)
        for stack in self._stacks.values():
            stack.write(pages, modules)
        slot = min(set(range(self._max_slots)) - {resident.slot for resident in stay.values()})
        return _Resident(slot, pages, projections, num_bytes)

    def _has_room(self, others: Collection[_Resident], num_pages: int, num_bytes: int) -> bool:
        return (
            len(others) < self._max_slots
            and sum(len(other.pages) for other in others) + num_pages <= self._num_pages
            and sum(other.num_bytes for other in others) + num_bytes <= self._max_bytes
        )

    def _of_slot(self, slot: int) -> _Resident:
        return next(r for r in self._residents.values() if r.slot == slot)


def others_of(
    slots: Sequence[int | None], owners: Sequence[int | None], device: torch.device
) -> torch.Tensor:
    """Return which pages are not a row's own (rows, pages, 1)."""
    own = torch.tensor([-1 if slot is None else slot for slot in slots])
    of_page = torch.tensor([-2 if slot is None else slot for slot in owners])
    return to_device((own[:, None] != of_page)[:, :, None], device)
