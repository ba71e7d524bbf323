"""Micro-batches as tensors."""

from dataclasses import dataclass

import numpy as np
import torch

from src.data.packing import Span
from src.data.steps import MicroBatch
from src.data.token_file import TokenDataset
from src.data.tokenization import IGNORE_INDEX
from src.transfer import to_device


@dataclass(frozen=True)
class Batch:
    """Spans laid end to end in one row without padding; `boundaries` part them."""

    input_ids: torch.Tensor  # (1, tokens)
    position_ids: torch.Tensor  # (1, tokens), from 0 in every span
    target_positions: torch.Tensor  # (target tokens,), their places in the row
    labels: torch.Tensor  # (target tokens,), what comes after each of them
    loss_weights: torch.Tensor  # (target tokens,)
    boundaries: tuple[int, ...]
    """Start of every span, then the number of tokens."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(
            to_device(self.input_ids, device),
            to_device(self.position_ids, device),
            to_device(self.target_positions, device),
            to_device(self.labels, device),
            to_device(self.loss_weights, device),
            self.boundaries,
        )


def collate(micro_batch: MicroBatch, dataset: TokenDataset, *, prompt_loss_weight: float) -> Batch:
    """Return the tensors of a micro-batch; an empty one becomes a row with nothing to learn."""
    spans = [span for sequence in micro_batch for span in sequence]
    if not spans:
        spans = [Span(0, 1)]
    input_ids = np.concatenate([dataset.input_ids[s.start : s.stop] for s in spans])
    labels = np.concatenate([dataset.labels[s.start : s.stop] for s in spans])
    mask = np.concatenate([dataset.loss_mask[s.start : s.stop] for s in spans])
    weights = np.where(mask, 1.0, prompt_loss_weight).astype(np.float32)
    weights[labels == IGNORE_INDEX] = 0.0
    if not micro_batch:
        weights[:] = 0.0
    (target_positions,) = weights.nonzero()
    lengths = [len(span) for span in spans]
    return Batch(
        torch.from_numpy(input_ids.astype(np.int64))[None],
        torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        torch.from_numpy(target_positions),
        torch.from_numpy(labels[target_positions].astype(np.int64)),
        torch.from_numpy(weights[target_positions]),
        (0, *np.cumsum(lengths).tolist()),
    )
