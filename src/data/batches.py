"""Sequences as batches of tensors: which step, rank and micro-batch each one belongs to."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from src.data.batch_plan import BatchPlan
from src.data.dataset import TokenDataset
from src.data.packing import Sequence, Span, count_tokens
from src.data.tokenization import IGNORE_INDEX

MicroBatch = tuple[Sequence, ...]


def shuffle_epoch(sequences: list[Sequence], *, seed: int, epoch: int) -> list[Sequence]:
    """Return the sequences in the order of one epoch, the same for every rank."""
    order = np.random.default_rng([seed, epoch]).permutation(len(sequences))
    return [sequences[i] for i in order]


def split_steps(sequences: list[Sequence], global_batch_size: int) -> Iterator[list[Sequence]]:
    """Yield the sequences of each optimizer step; the last may be fewer, none is dropped."""
    for start in range(0, len(sequences), global_batch_size):
        yield sequences[start : start + global_batch_size]


def split_micro_batches(step: list[Sequence], plan: BatchPlan) -> list[list[MicroBatch]]:
    """Spread the sequences of one step over [rank][micro step], the longest ones apart.

    Every rank gets the same number of micro-batches; in a short step some are empty.
    """
    num_micro_steps = -(-len(step) // (plan.world_size * plan.micro_batch_size))
    slots: list[list[Sequence]] = [[] for _ in range(plan.world_size * num_micro_steps)]
    tokens = [0] * len(slots)
    for sequence in sorted(step, key=count_tokens, reverse=True):
        free = [i for i, slot in enumerate(slots) if len(slot) < plan.micro_batch_size]
        lightest = min(free, key=lambda i: (tokens[i], i))
        slots[lightest].append(sequence)
        tokens[lightest] += count_tokens(sequence)
    return [[tuple(slot) for slot in slots[r :: plan.world_size]] for r in range(plan.world_size)]


@dataclass(frozen=True)
class Batch:
    """Spans laid end to end in one row without padding; `boundaries` part them."""

    input_ids: torch.Tensor  # (1, tokens)
    position_ids: torch.Tensor  # (1, tokens), from 0 in every span
    learned: torch.Tensor  # (learned tokens,), their places in the row
    labels: torch.Tensor  # (learned tokens,), what comes after each of them
    label_weights: torch.Tensor  # (learned tokens,)
    boundaries: tuple[int, ...]
    """Start of every span, then the number of tokens."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(
            self.input_ids.to(device, non_blocking=True),
            self.position_ids.to(device, non_blocking=True),
            self.learned.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.label_weights.to(device, non_blocking=True),
            self.boundaries,
        )


def collate(micro_batch: MicroBatch, dataset: TokenDataset, *, prompt_loss_weight: float) -> Batch:
    """Return the tensors of a micro-batch; an empty one becomes a row with nothing to learn."""
    spans = [span for sequence in micro_batch for span in sequence]
    if not spans:
        spans = [Span(0, 1)]
    input_ids = np.concatenate([dataset.input_ids[s.start : s.stop] for s in spans])
    labels = np.concatenate([dataset.labels[s.start : s.stop] for s in spans])
    mask = np.concatenate([dataset.completion_mask[s.start : s.stop] for s in spans])
    weights = np.where(mask, 1.0, prompt_loss_weight).astype(np.float32)
    weights[labels == IGNORE_INDEX] = 0.0
    if not micro_batch:
        weights[:] = 0.0
    (learned,) = weights.nonzero()
    lengths = [len(span) for span in spans]
    return Batch(
        torch.from_numpy(input_ids.astype(np.int64))[None],
        torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        torch.from_numpy(learned),
        torch.from_numpy(labels[learned].astype(np.int64)),
        torch.from_numpy(weights[learned]),
        (0, *np.cumsum(lengths).tolist()),
    )
