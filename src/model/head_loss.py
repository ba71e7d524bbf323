"""The head and its loss; its scores, the widest numbers of a pass, are there a piece at a time."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_PER_PIECE = 2**25
"""Scores of the head that are in memory at a time: 128 MiB in float32."""
IN_CACHE_OF_CPU, IN_CACHE_OF_GPU = 2**19, 2**23
"""Scores in float32 that a cache holds: on a CPU, steps over them take a third of the time."""


def head_loss(
    hidden: Tensor,  # (tokens, hidden size)
    weight: Tensor,  # (vocabulary, hidden size)
    labels: Tensor,  # (tokens,)
    loss_weights: Tensor,  # (tokens,)
    *,
    cap: float | None = None,
) -> Tensor:
    """Return the weighted sum of the negative log likelihoods, in float32.

    The head is frozen; `cap` bounds its scores as in Gemma 2.
    """
    total = _HeadLoss.apply(hidden, weight, labels, loss_weights, cap)
    assert isinstance(total, Tensor)
    return total


def piece_rows(vocabulary: int) -> int:
    """Return of how many tokens the scores are in memory at a time."""
    return max(1, LOGITS_PER_PIECE // vocabulary)


def rows_in_float32(vocabulary: int, *, on_gpu: bool) -> int:
    """Return of how many of a piece's tokens the scores are in float32 at a time."""
    return max(1, (IN_CACHE_OF_GPU if on_gpu else IN_CACHE_OF_CPU) // vocabulary)


class _HeadLoss(torch.autograd.Function):
    """Frozen head and cross entropy; the gradient is made piece by piece along with the loss.

    So no piece's scores outlive it (as in Liger Kernel, Hsu et al. 2024).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (tokens, hidden size)
        weight: Tensor,  # (vocabulary, hidden size)
        labels: Tensor,
        loss_weights: Tensor,
        cap: float | None,
    ) -> Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needs_gradient else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        size = piece_rows(weight.shape[0])
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            piece = hidden[rows], weight, labels[rows, None], loss_weights[rows, None]
            total += _head_piece(*piece, cap, None if gradient is None else gradient[rows])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None, None


def _head_piece(
    hidden: Tensor,  # (rows, hidden size)
    weight: Tensor,
    labels: Tensor,  # (rows, 1)
    loss_weights: Tensor,  # (rows, 1)
    cap: float | None,
    gradient: Tensor | None,
) -> Tensor:
    """Return the loss of some tokens and fill in its gradient of their hidden states."""
    scores = hidden @ weight.T
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    size = rows_in_float32(scores.shape[1], on_gpu=scores.device.type != "cpu")
    parts = (x.split(size) for x in (scores, labels, loss_weights))
    for part, label, loss_weight in zip(*parts, strict=True):
        wide = part.float() if cap is None else cap * torch.tanh(part.float() / cap)
        log_shares = wide.log_softmax(-1)
        loss -= (log_shares.gather(1, label) * loss_weight).sum()
        if gradient is not None:
            # d nll / d score = softmax - 1 at the label.
            slope = log_shares.exp_().mul_(loss_weight)
            slope.scatter_add_(1, label, -loss_weight)
            if cap is not None:
                slope.addcmul_(slope, wide.div_(cap).square_(), value=-1)
            part.copy_(slope)
    if gradient is not None:
        torch.mm(scores, weight, out=gradient)
    return loss
