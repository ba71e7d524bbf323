"""Which sequences make each optimizer step, and how these spread over ranks and micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from src.data.packing import PackedSequence, PackedSequences, count_tokens

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


def shuffle_epoch(num_sequences: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the numbers of the sequences in the order of one epoch, the same for every rank."""
    return np.random.default_rng([seed, epoch]).permutation(num_sequences)


def spread(lengths: np.ndarray, sizes: BatchSizes) -> tuple[np.ndarray, np.ndarray]:
    """Spread the sequences of each step over its micro-batches, the longest ones apart.

    The longest first, each goes to the lightest micro-batch with room, the first of equals. All
    steps have the same number of sequences: lengths (steps, sequences). Returns the micro-batch of
    each (steps, sequences), micro-batch m being of rank m % world_size, and the tokens in each
    micro-batch (steps, micro-batches).
    """
    num_steps, num_sequences = lengths.shape
    num_micro_steps = -(-num_sequences // (sizes.world_size * sizes.micro_batch_size))
    tokens = np.zeros((num_steps, num_micro_steps * sizes.world_size), np.int64)
    filled = np.zeros_like(tokens)
    micro_batches = np.empty_like(lengths)
    steps = np.arange(num_steps)
    full = np.iinfo(np.int64).max
    for sequence in _longest_first(lengths).T:
        lightest = np.where(filled < sizes.micro_batch_size, tokens, full).argmin(axis=1)
        micro_batches[steps, sequence] = lightest
        tokens[steps, lightest] += lengths[steps, sequence]
        filled[steps, lightest] += 1
    return micro_batches, tokens


def split_micro_batches(step: list[PackedSequence], sizes: BatchSizes) -> list[list[MicroBatch]]:
    """Return the sequences of one step as micro-batches [rank][micro step]; see `spread`.

    Every rank gets the same number of micro-batches; in a short step some are empty.
    """
    lengths = np.array([[count_tokens(sequence) for sequence in step]])
    (micro_batches,), (tokens,) = spread(lengths, sizes)
    found: list[list[PackedSequence]] = [[] for _ in tokens]
    for i in _longest_first(lengths)[0]:
        found[micro_batches[i]].append(step[i])
    return [[tuple(m) for m in found[r :: sizes.world_size]] for r in range(sizes.world_size)]


def _longest_first(lengths: np.ndarray) -> np.ndarray:
    return np.argsort(-lengths, axis=1, kind="stable")


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
    """All steps of a run, the same on every rank; the last of an epoch may be short."""

    sequences: PackedSequences
    batch_sizes: BatchSizes
    num_epochs: int
    seed: int
    max_steps: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.sequences) // self.batch_sizes.global_batch_size)

    @property
    def num_steps(self) -> int:
        num_steps = self.steps_per_epoch * self.num_epochs
        return min(num_steps, self.max_steps or num_steps)

    def __iter__(self) -> Iterator[Step]:
        size, steps_per_epoch = self.batch_sizes.global_batch_size, self.steps_per_epoch
        number = 0
        for order in self._epochs():
            for start in range(0, len(order), size):
                number += 1
                yield Step(
                    number,
                    number / steps_per_epoch,
                    number % steps_per_epoch == 0,
                    [self.sequences[i] for i in order[start : start + size].tolist()],
                )

    def longest_micro_batch(self, rank: int | None = None) -> MicroBatch:
        """Return the micro-batch with the most tokens, of one rank or of all."""
        sizes, lengths = self.batch_sizes, self.sequences.lengths
        of_rank = slice(rank, None, None if rank is None else sizes.world_size)
        no_more = np.sort(lengths)[-sizes.micro_batch_size :].sum()
        most, longest_step = -1, np.empty(0, np.int64)
        for order in self._epochs():
            # All steps at once, but for a short one at the end.
            num_full = len(order) // sizes.global_batch_size * sizes.global_batch_size
            full_steps = order[:num_full].reshape(-1, sizes.global_batch_size)
            for steps in (s for s in (full_steps, order[None, num_full:]) if s.size):
                _, tokens = spread(lengths[steps], sizes)
                most_tokens = tokens[:, of_rank].max(axis=1)
                if most_tokens.max() > most:
                    most, longest_step = most_tokens.max(), steps[most_tokens.argmax()]
            if most == no_more:
                break
        ranks = split_micro_batches([self.sequences[i] for i in longest_step.tolist()], sizes)
        micro_batches = ranks[rank] if rank is not None else [m for micro in ranks for m in micro]
        return max(micro_batches, key=lambda batch: sum(map(count_tokens, batch)))

    def _epochs(self) -> Iterator[np.ndarray]:
        """Yield the sequences' numbers in the order of each epoch, up to the last step."""
        for first_step in range(0, self.num_steps, self.steps_per_epoch):
            epoch = first_step // self.steps_per_epoch
            order = shuffle_epoch(len(self.sequences), seed=self.seed, epoch=epoch)
            yield order[: (self.num_steps - first_step) * self.batch_sizes.global_batch_size]
