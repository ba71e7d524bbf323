"""One autograd step for a frozen layer and its LoRA matrices, with the sums done in place.

The maths is LoRA's (Hu et al. 2021), y = x W' + scale (drop(x) A') B'; fusing it spares the copies
that separate modules make of every activation.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


class _FusedLora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,  # (tokens, in_features)
        weight: torch.Tensor,  # (out_features, in_features)
        bias: torch.Tensor | None,
        lora_A: torch.Tensor,  # (rank, in_features)
        lora_B: torch.Tensor,  # (out_features, rank)
        scale: float,
        dropout_mask: torch.Tensor | None,  # (tokens, in_features), 0 or 1 / (1 - p)
    ) -> torch.Tensor:
        dropped = x if dropout_mask is None else x * dropout_mask
        low = dropped @ lora_A.T
        ctx.scale = scale
        ctx.save_for_backward(x, weight, lora_A, lora_B, low, dropout_mask)
        return linear(x, weight, bias).addmm_(low, lora_B.T, alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:  # type: ignore[override]
        (grad,) = gradients
        x, weight, lora_A, lora_B, low, dropout_mask = ctx.saved_tensors
        dropped = x if dropout_mask is None else x * dropout_mask
        grad_low = (grad @ lora_B).mul_(ctx.scale)
        grad_A = grad_low.T @ dropped
        grad_B = (grad.T @ low).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if dropout_mask is None:
                grad_x.addmm_(grad_low, lora_A)
            else:
                grad_x.add_((grad_low @ lora_A).mul_(dropout_mask))
        return grad_x, None, None, grad_A, grad_B, None, None


def fuse_lora(model: nn.Module) -> str | None:
    """Use the fused step in every adapted layer; return why not, where it cannot apply.

    Layers that are no plain linear ones, such as 4-bit ones, keep PEFT's own forward.
    """
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "lora_A") and m.lora_A]
    unfit = {
        type(layer.base_layer).__name__
        for layer in layers
        if type(layer.base_layer) is not nn.Linear
    }
    if unfit:
        return f"the base layers are {', '.join(sorted(unfit))}"
    for layer in layers:
        layer.forward = _fused_forward(layer)
    return None


def _fused_forward(layer: Any) -> Callable[..., torch.Tensor]:
    (name,) = layer.lora_A
    base, lora_A, lora_B = layer.base_layer, layer.lora_A[name], layer.lora_B[name]
    scale, dropout = layer.scaling[name], getattr(layer.lora_dropout[name], "p", 0.0)

    def forward(x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        mask = None
        if layer.training and dropout > 0:
            mask = torch.empty_like(rows).bernoulli_(1 - dropout).div_(1 - dropout)
        output = _FusedLora.apply(
            rows, base.weight, base.bias, lora_A.weight, lora_B.weight, scale, mask
        )
        assert isinstance(output, torch.Tensor)
        return output.view(*x.shape[:-1], -1)

    return forward
