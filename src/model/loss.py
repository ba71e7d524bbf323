"""The loss of a batch: the weighted sum over its target tokens."""

from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy

from src.model.base_model import decoder_layers, recompute_layers
from src.model.core.attention import Spans
from src.model.core.compiled import compile_layers
from src.model.core.proof import open_proven
from src.model.core.trained import TrainedDecoder
from src.model.head_loss import piece_rows
from src.model.isolation import takes_positions
from src.model.transformers_attention import ISOLATED, NO_MASK


class SummedLoss(nn.Module):
    """Base model, adapter and loss in one module, so that DeepSpeed sees one forward."""

    def __init__(self, model: Any, *, is_sharded: bool = False) -> None:
        super().__init__()
        self.model = model
        self.is_sharded = is_sharded
        self.shares_rows = True
        """Whether examples in one row do not see each other in this model."""
        self.is_isolated = model.config._attn_implementation == ISOLATED
        self.decoder: TrainedDecoder | None = None
        """Ours, where it knows the family and each rank holds all weights."""

    def use_decoder(self) -> str | None:
        """Run our decoder in place of transformers' layers; return why not, where it cannot."""
        decoder = open_proven(self.model, TrainedDecoder)
        if isinstance(decoder, str):
            return decoder
        self.decoder = decoder
        return None

    def compile_layers(self) -> str | None:
        """Run our decoder's layers compiled; return why not, where that fails."""
        assert self.decoder is not None
        return compile_layers(self.decoder)

    @property
    def can_be_captured(self) -> bool:
        """Whether a pass is the same steps for all batches of a size.

        What no kernel serves is done span by span.
        """
        return self.decoder is not None and self.decoder.can_be_captured

    @property
    def num_layers(self) -> int:
        """Return how many layers can be recomputed."""
        if self.decoder is not None:
            return len(self.decoder.layers)
        return len(decoder_layers(self.model))

    def recompute(self, count: int) -> None:
        """Have the first layers keep only their input for the backward pass, and no others."""
        if self.decoder is not None:
            self.decoder.num_recomputed = count
        else:
            recompute_layers(self.model, count)

    def forward(
        self,
        input_ids: torch.Tensor,  # (1, tokens)
        position_ids: torch.Tensor,  # (1, tokens)
        target_positions: torch.Tensor,  # (target tokens,), their places in the row
        labels: torch.Tensor,  # (target tokens,), what comes after each of them
        loss_weights: torch.Tensor,  # (target tokens,)
        boundaries: tuple[int, ...] | Spans,
    ) -> torch.Tensor:
        """Return the weighted sum of the negative log likelihoods, in float32."""
        if self.shares_rows:
            return self._sum_row(
                input_ids, position_ids, target_positions, labels, loss_weights, boundaries
            )
        assert not isinstance(boundaries, Spans)
        total = torch.zeros((), device=input_ids.device)
        for start, stop, is_own in self._passes(boundaries, input_ids.device):
            rows = (target_positions >= start) & (target_positions < stop) & is_own
            total = total + self._sum_row(
                input_ids[:, start:stop],
                position_ids[:, start:stop],
                target_positions[rows] - start,
                labels[rows],
                loss_weights[rows],
                (0, stop - start),
            )
        return total

    def _passes(
        self, boundaries: tuple[int, ...], device: torch.device
    ) -> list[tuple[int, int, bool]]:
        """Return (start, stop, True) of each example, and empty passes to stay in step."""
        passes = [(start, stop, True) for start, stop in pairwise(boundaries)]
        if self.is_sharded:
            most = torch.tensor(len(passes), device=device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            passes += [(0, 1, False)] * (int(most) - len(passes))
        return passes

    def _sum_row(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        target_positions: torch.Tensor,
        labels: torch.Tensor,
        loss_weights: torch.Tensor,
        boundaries: tuple[int, ...] | Spans,
    ) -> torch.Tensor:
        if not isinstance(boundaries, Spans):
            boundaries = Spans.between(boundaries, input_ids.device)
        if self.decoder is not None:
            row = input_ids[0], position_ids[0], boundaries, target_positions
            return self.decoder.sum_loss(*row, labels, loss_weights)
        if not self.is_isolated:
            # Position ids that start again keep the spans apart, as long as nothing is cached.
            positions = {"position_ids": position_ids} if takes_positions(self.model) else {}
            logits = self.model(input_ids, use_cache=False, **positions).logits
            return _weighted_nll(logits[0, target_positions], labels, loss_weights)
        hidden = self.model.get_decoder()(
            input_ids,
            attention_mask=NO_MASK,
            position_ids=position_ids,
            use_cache=False,
            spans=boundaries,
        ).last_hidden_state[0]
        # The head is the widest layer: it sees target tokens only, and a piece of them at a time.
        hidden = hidden.index_select(0, target_positions)
        head = self.model.get_output_embeddings()
        # Without anything to learn, the sum still takes part in the backward pass.
        total = hidden.float().sum() * 0.0
        pieces = (x.split(piece_rows(head.out_features)) for x in (hidden, labels, loss_weights))
        for rows, *targets in zip(*pieces, strict=True):
            total = total + _weighted_nll(head(rows), *targets)
        return total


def _weighted_nll(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    return (cross_entropy(logits.float(), labels, reduction="none") * weights).sum()
