"""The loss of a batch: the weighted sum over its learned tokens."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from src.model.attention import ISOLATED, without_mask

IGNORE_INDEX = -100
ROWS_PER_PIECE = 4096


class SummedLoss(nn.Module):
    """Base model, adapter and loss in one module, so that DeepSpeed sees one forward."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.is_isolated = model.config._attn_implementation == ISOLATED

    def forward(
        self,
        input_ids: torch.Tensor,  # (1, tokens)
        position_ids: torch.Tensor,  # (1, tokens)
        labels: torch.Tensor,  # (tokens,)
        label_weights: torch.Tensor,  # (tokens,)
        span_boundaries: tuple[int, ...],
    ) -> torch.Tensor:
        """Return the weighted sum of the negative log likelihoods, in float32."""
        learned = (labels != IGNORE_INDEX).nonzero()[:, 0]
        if not self.is_isolated:
            # Position ids that start again keep the spans apart, as long as nothing is cached.
            logits = self.model(input_ids, position_ids=position_ids, use_cache=False).logits
            return _weighted_nll(logits[0, learned], labels[learned], label_weights[learned])
        with without_mask():
            hidden = self.model.get_decoder()(
                input_ids,
                position_ids=position_ids,
                use_cache=False,
                span_boundaries=span_boundaries,
            ).last_hidden_state[0]
        head = self.model.get_output_embeddings()
        # A micro-batch with nothing to learn still takes part in the backward pass.
        total = hidden.float().sum() * 0.0
        # The head is the widest layer: it sees learned tokens only, a piece at a time.
        for rows in learned.split(ROWS_PER_PIECE):
            total = total + _weighted_nll(head(hidden[rows]), labels[rows], label_weights[rows])
        return total


def _weighted_nll(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    return (cross_entropy(logits.float(), labels, reduction="none") * weights).sum()
