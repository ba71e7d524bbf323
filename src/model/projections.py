"""A frozen layer and its LoRA matrices as one autograd step, with the sums done in place.

The maths is LoRA's (Hu et al. 2021), y = x W' + scale (drop(x) A') B'. One step for all the layers
that read the same input spares the copies that separate modules make of every activation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from src.model.base_model import dense_weight
from src.model.elementwise import gate, gate_backward


@dataclass(frozen=True)
class Projection:
    """One linear layer of the base model, with its adapter if it has one."""

    base: Any
    lora_A: nn.Parameter | None = None  # (rank, in_features)
    lora_B: nn.Parameter | None = None  # (out_features, rank)
    scale: float = 1.0
    dropout: float = 0.0

    def forward(
        self, x: torch.Tensor, dropped: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output (tokens, out_features) and the low-rank input (tokens, rank)."""
        output = linear(x, dense_weight(self.base), self.base.bias)
        if self.lora_A is None or self.lora_B is None:
            return output, None
        low = dropped @ self.lora_A.T
        return output.addmm_(low, self.lora_B.T, alpha=self.scale), low

    def parameter_gradients(
        self, grad: torch.Tensor, low: torch.Tensor | None, dropped: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of the low-rank input, lora_A and lora_B."""
        if low is None or self.lora_B is None:
            return None, None, None
        grad_low = (grad @ self.lora_B).mul_(self.scale)
        return grad_low, grad_low.T @ dropped, (grad.T @ low).mul_(self.scale)


def build_projection(layer: Any, *, training: bool) -> Projection:
    """Return a linear layer, adapted by PEFT or plain, as a projection."""
    if not getattr(layer, "lora_A", None):
        return Projection(layer)
    (name,) = layer.lora_A
    dropout = getattr(layer.lora_dropout[name], "p", 0.0) if training else 0.0
    return Projection(
        layer.base_layer,
        layer.lora_A[name].weight,
        layer.lora_B[name].weight,
        # What dropout leaves is scaled up, here once for all of it.
        layer.scaling[name] / (1 - dropout),
        dropout,
    )


def project(x: torch.Tensor, layers: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """Return the outputs (tokens, out_features) of layers that read the same x (tokens, in)."""
    projections = tuple(build_projection(layer, training=layer.training) for layer in layers)
    outputs = _Project.apply(x, projections, _draw_mask(x, projections), *_parameters(projections))
    assert isinstance(outputs, tuple)
    return outputs


def project_gated(gated: torch.Tensor, up: torch.Tensor, layer: Any) -> torch.Tensor:
    """Return layer(silu(gated) * up) without keeping the product."""
    projection = build_projection(layer, training=layer.training)
    mask = _draw_mask(gated, (projection,))
    output = _ProjectGated.apply(gated, up, projection, mask, *_parameters((projection,)))
    assert isinstance(output, torch.Tensor)
    return output


def _parameters(projections: Sequence[Projection]) -> list[nn.Parameter | None]:
    return [p for projection in projections for p in (projection.lora_A, projection.lora_B)]


def _draw_mask(x: torch.Tensor, projections: Sequence[Projection]) -> torch.Tensor | None:
    """Return which inputs stay; one draw serves all the adapters of an input."""
    dropout = max(projection.dropout for projection in projections)
    if dropout == 0:
        return None
    return torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - dropout)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        projections: tuple[Projection, ...],
        mask: torch.Tensor | None,
        *parameters: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        dropped = x if mask is None else x * mask
        outputs, lows = zip(*(p.forward(x, dropped) for p in projections), strict=True)
        ctx.projections = projections
        ctx.save_for_backward(x, mask, *lows)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:  # type: ignore[override]
        x, mask, *lows = ctx.saved_tensors
        dropped = x if mask is None else x * mask
        grad_x, gradients = None, []
        for projection, grad, low in zip(ctx.projections, grads, lows, strict=True):
            grad_low, *found = projection.parameter_gradients(grad, low, dropped)
            gradients += found
            if ctx.needs_input_grad[0]:
                grad_x = _input_gradient(projection, grad, grad_low, mask, grad_x)
        return grad_x, None, None, *gradients


class _ProjectGated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gated: torch.Tensor,  # (tokens, in_features)
        up: torch.Tensor,  # (tokens, in_features)
        projection: Projection,
        mask: torch.Tensor | None,
        *parameters: torch.Tensor | None,
    ) -> torch.Tensor:
        x = gate(gated, up)
        output, low = projection.forward(x, x if mask is None else x * mask)
        ctx.projection = projection
        ctx.save_for_backward(gated, up, mask, low)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:  # type: ignore[override]
        (grad,) = grads
        gated, up, mask, low = ctx.saved_tensors
        projection = ctx.projection
        x = gate(gated, up)
        dropped = x if mask is None else x * mask
        grad_low, *gradients = projection.parameter_gradients(grad, low, dropped)
        grad_x = _input_gradient(projection, grad, grad_low, mask, None)
        return *gate_backward(grad_x, gated, up), None, None, *gradients


def _input_gradient(
    projection: Projection,
    grad: torch.Tensor,
    grad_low: torch.Tensor | None,
    mask: torch.Tensor | None,
    total: torch.Tensor | None,
) -> torch.Tensor:
    """Return the gradient of the input, added to `total` in place."""
    weight = dense_weight(projection.base)
    total = grad @ weight if total is None else total.addmm_(grad, weight)
    if grad_low is None or projection.lora_A is None:
        return total
    if mask is None:
        return total.addmm_(grad_low, projection.lora_A)
    return total.add_((grad_low @ projection.lora_A).mul_(mask))
