"""The loss of a batch: the weighted sum over its target tokens."""

from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

from src.model.attention import ISOLATED, NO_MASK, Spans
from src.model.isolation import takes_positions
from src.model.shape import LOGITS_PER_PIECE


class SummedLoss(nn.Module):
    """Base model, adapter and loss in one module, so that DeepSpeed sees one forward."""

    def __init__(self, model: Any, *, is_sharded: bool = False) -> None:
        super().__init__()
        self.model = model
        self.is_sharded = is_sharded
        self.shares_rows = True
        """Whether examples in one row do not see each other in this model."""
        self.is_isolated = model.config._attn_implementation == ISOLATED
        self.fuses_head = not is_sharded and type(model.get_output_embeddings()) is nn.Linear

    @property
    def can_be_captured(self) -> bool:
        """Whether a pass is the same steps for all batches of a size."""
        return self.is_isolated and self.shares_rows

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
        if not self.is_isolated:
            # Position ids that start again keep the spans apart, as long as nothing is cached.
            positions = {"position_ids": position_ids} if takes_positions(self.model) else {}
            logits = self.model(input_ids, use_cache=False, **positions).logits
            return _weighted_nll(logits[0, target_positions], labels, loss_weights)
        if not isinstance(boundaries, Spans):
            boundaries = Spans.between(boundaries, input_ids.device)
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
        if self.fuses_head and head.bias is None:
            total = _HeadLoss.apply(hidden, head.weight, labels, loss_weights)
            assert isinstance(total, torch.Tensor)
            return total
        # Without anything to learn, the sum still takes part in the backward pass.
        total = hidden.float().sum() * 0.0
        pieces = (x.split(_piece_rows(head.out_features)) for x in (hidden, labels, loss_weights))
        for rows, *targets in zip(*pieces, strict=True):
            total = total + _weighted_nll(head(rows), *targets)
        return total


class _HeadLoss(torch.autograd.Function):
    """Frozen head and cross entropy; the gradient is made piece by piece along with the loss.

    So no piece's scores outlive it (as in Liger Kernel, Hsu et al. 2024).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # (tokens, hidden size)
        weight: torch.Tensor,  # (vocabulary, hidden size)
        labels: torch.Tensor,
        loss_weights: torch.Tensor,
    ) -> torch.Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needs_gradient else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        size = _piece_rows(weight.shape[0])
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            piece = hidden[rows], weight, labels[rows, None], loss_weights[rows, None]
            total += _head_piece(*piece, None if gradient is None else gradient[rows])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None


def _head_piece(
    hidden: torch.Tensor,  # (rows, hidden size)
    weight: torch.Tensor,
    labels: torch.Tensor,  # (rows, 1)
    loss_weights: torch.Tensor,  # (rows, 1)
    gradient: torch.Tensor | None,
) -> torch.Tensor:
    """Return the loss of some tokens and fill in its gradient of their hidden states."""
    scores = (hidden @ weight.T).float()
    log_sums = scores.logsumexp(-1, keepdim=True)
    loss = ((log_sums - scores.gather(1, labels)) * loss_weights).sum()
    if gradient is not None:
        # d nll / d score = softmax - 1 at the label.
        slope = scores.sub_(log_sums).exp_().mul_(loss_weights)
        slope.scatter_add_(1, labels, -loss_weights)
        torch.mm(slope.to(weight.dtype), weight, out=gradient)
    return loss


def _piece_rows(vocabulary: int) -> int:
    return max(1, LOGITS_PER_PIECE // vocabulary)


def _weighted_nll(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    return (cross_entropy(logits.float(), labels, reduction="none") * weights).sum()
