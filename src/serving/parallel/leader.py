"""The first rank's passes: what they do to adapters and cache, and read, all ranks do."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from src.model.core.decoder import Decoder
from src.serving.cache.kv_cache import Block, KVCache
from src.serving.engine.model_runner import ModelRunner
from src.serving.lora.slots import LoraSlots
from src.serving.lora.stacked import LoraBatch
from src.serving.lora.weights import LoadedAdapter
from src.serving.model.chunk import Chunk
from src.serving.parallel.adapter_part import cut_adapter
from src.serving.parallel.followers import Followers


class LeadingRunner(ModelRunner):
    """A pass that fails on one rank alone would leave the others waiting: it ends them all."""

    def __init__(self, decoder: Decoder, followers: Followers, **options: Any) -> None:
        self._followers = followers
        self.cache_kind = partial(LeadingCache, followers)
        self.lora_kind = partial(LeadingLora, followers)
        super().__init__(decoder, **options)

    def prefill(self, chunks: Sequence[Chunk]) -> torch.Tensor | None:
        """Read tokens into slots, as `ModelRunner` does; raises RankLost."""
        # Scores are drawn from here alone.
        self._followers.run("prefill", [chunk._replace(num_scores=0) for chunk in chunks])
        with self._together():
            return super().prefill(chunks)

    def decode(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        lengths: list[int],
        lora: LoraBatch | None,
    ) -> torch.Tensor:
        """Read one token in each row, as `ModelRunner` does; raises RankLost."""
        self._followers.run("decode", lengths)
        with self._together():
            dist.broadcast(tokens, src=0)
            return super().decode(tokens, positions, lengths, lora)

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise self._followers.lost_by(error) from error


class LeadingCache(KVCache):
    """A cache whose blocks every rank has."""

    def __init__(self, followers: Followers, **sizes: Any) -> None:
        super().__init__(**sizes)
        self._followers = followers

    def give(self, group: int, slot: int, blocks: list[Block], num_written: int) -> None:
        """Append blocks of a group to a slot."""
        self._followers.tell("give", group, slot, blocks, num_written)
        super().give(group, slot, blocks, num_written)

    def copy(self, source: Block, target: Block, num_tokens: int) -> None:
        """Give one block the first tokens of another."""
        self._followers.tell("copy", source, target, num_tokens)
        super().copy(source, target, num_tokens)

    def drop(self, group: int, slot: int, numbers: range) -> None:
        """Take blocks from a slot."""
        self._followers.tell("drop", group, slot, numbers)
        super().drop(group, slot, numbers)

    def clear(self, slot: int) -> None:
        """Take all blocks from a slot."""
        self._followers.tell("clear", slot)
        super().clear(slot)


class LeadingLora(LoraSlots):
    """Adapters of which each rank has its part."""

    def __init__(self, followers: Followers, projections: Any, **options: Any) -> None:
        super().__init__(projections, **options)
        self._followers = followers

    def acquire(self, adapter: LoadedAdapter) -> int | None:
        """Return the adapter's slot, as `LoraSlots` does."""
        is_known = adapter.key in self._residents
        parts = [
            None if is_known else cut_adapter(adapter, own)
            for own in self._followers.partition.all_ranks()
        ]
        slot = super().acquire(adapter if parts[0] is None else parts[0].unpack())
        if slot is not None:
            self._followers.tell_each([("acquire", adapter.key, slot, part) for part in parts[1:]])
        return slot

    def release(self, slot: int) -> None:
        """Say that one of the users of a slot needs it no more."""
        self._followers.tell("release", slot)
        super().release(slot)

    def batch(self, slots: Sequence[int | None]) -> LoraBatch | None:
        """Return the adapters of the rows of the next steps."""
        self._followers.tell("batch", slots)
        return super().batch(slots)
