"""Which sequences make each optimizer step, and how these spread over devices and micro-batches."""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from src.data.packing import PackedSequence, count_tokens

MicroBatch = tuple[PackedSequence, ...]


@dataclass(frozen=True)
class BatchSizes:
    """train_batch_size = world_size x micro_batch_size x gradient_accumulation_steps, exactly."""

    world_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int

    @property
    def global_batch_size(self) -> int:
        return self.world_size * self.micro_batch_size * self.gradient_accumulation_steps


def choose_batch_sizes(
    *, train_batch_size: int, micro_batch_size: int, num_devices: int
) -> BatchSizes:
    """Split the global batch over as many devices as divide it, in the largest micro-batches."""
    world_size = _largest_divisor(train_batch_size, num_devices)
    share = train_batch_size // world_size
    micro = _largest_divisor(share, micro_batch_size)
    return BatchSizes(world_size, micro, share // micro)


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


def shuffle_epoch(
    sequences: list[PackedSequence], *, seed: int, epoch: int
) -> list[PackedSequence]:
    """Return the sequences in the order of one epoch, the same for every rank."""
    order = np.random.default_rng([seed, epoch]).permutation(len(sequences))
    return [sequences[i] for i in order]


def split_steps(
    sequences: list[PackedSequence], global_batch_size: int
) -> Iterator[list[PackedSequence]]:
    """Yield the sequences of each optimizer step; the last may be fewer, none is dropped."""
    for start in range(0, len(sequences), global_batch_size):
        yield sequences[start : start + global_batch_size]


def split_micro_batches(step: list[PackedSequence], plan: BatchSizes) -> list[list[MicroBatch]]:
    """Spread the sequences of one step over [rank][micro step], the longest ones apart.

    Every rank gets the same number of micro-batches; in a short step some are empty.
    """
    num_micro_steps = -(-len(step) // (plan.world_size * plan.micro_batch_size))
    slots: list[list[PackedSequence]] = [[] for _ in range(plan.world_size * num_micro_steps)]
    lightest = [(0, i) for i in range(len(slots))]  # a heap
    for sequence in sorted(step, key=count_tokens, reverse=True):
        tokens, i = heapq.heappop(lightest)
        slots[i].append(sequence)
        if len(slots[i]) < plan.micro_batch_size:
            heapq.heappush(lightest, (tokens + count_tokens(sequence), i))
    return [[tuple(slot) for slot in slots[r :: plan.world_size]] for r in range(plan.world_size)]


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    number: int
    """From 1."""
    epoch: float
    """Epochs that are done once this step is."""
    ends_epoch: bool
    sequences: list[PackedSequence]

    @property
    def num_tokens(self) -> int:
        return sum(map(count_tokens, self.sequences))


@dataclass(frozen=True)
class StepPlan:
    """All steps of a run, the same on every rank."""

    sequences: list[PackedSequence]
    plan: BatchSizes
    num_epochs: int
    seed: int
    max_steps: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.sequences) / self.plan.global_batch_size)

    @property
    def num_steps(self) -> int:
        num_steps = self.steps_per_epoch * self.num_epochs
        return min(num_steps, self.max_steps or num_steps)

    def __iter__(self) -> Iterator[Step]:
        number = 0
        for epoch in range(self.num_epochs):
            sequences = shuffle_epoch(self.sequences, seed=self.seed, epoch=epoch)
            batches = split_steps(sequences, self.plan.global_batch_size)
            for number_in_epoch, batch in enumerate(batches, 1):
                number += 1
                yield Step(
                    number,
                    epoch + number_in_epoch / self.steps_per_epoch,
                    number_in_epoch == self.steps_per_epoch,
                    batch,
                )
                if number == self.num_steps:
                    return

    def longest_micro_batch(self, rank: int | None = None) -> MicroBatch:
        """Return the micro-batch with the most tokens, of one rank or of all."""
        ranks = range(self.plan.world_size) if rank is None else (rank,)
        micro_batches = (
            micro_batch
            for step in self
            for spread in (split_micro_batches(step.sequences, self.plan),)
            for rank in ranks
            for micro_batch in spread[rank]
        )
        return max(micro_batches, key=lambda batch: sum(map(count_tokens, batch)))
