"""Norm, rotary embedding and gate: what a layer does to each number, with few passes over memory.

Each is one autograd step that keeps no more than its inputs; the maths is that of the Llama blocks
in transformers.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import rms_norm, silu


def normalize(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return RMSNorm of x over its last dimension (Zhang & Sennrich 2019)."""
    if x.device.type == "cuda":
        return rms_norm(x, (x.shape[-1],), weight, eps)
    output = _RmsNorm.apply(x, weight, eps)
    assert isinstance(output, torch.Tensor)
    return output


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:  # type: ignore[override]
        x, weight, inverse = ctx.saved_tensors
        grad = (grads[0] * weight).float()
        slope = (grad * x).sum(-1, keepdim=True).mul_(inverse.square() / x.shape[-1])
        return grad.addcmul_(x.float(), slope, value=-1).mul_(inverse).to(x.dtype), None, None


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return x (tokens, heads, head size) turned by its position (RoFormer, Su et al. 2021).

    cos and sin (tokens, 1, head size / 2) belong to pairs of a first and a second half.
    """
    output = _Rotate.apply(x, cos, sin)
    assert isinstance(output, torch.Tensor)
    return output


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, sin, -1), None, None


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, direction: int) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    output = torch.empty_like(x)
    new_first, new_second = output.chunk(2, dim=-1)
    torch.mul(first, cos, out=new_first).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=new_second).addcmul_(first, sin, value=direction)
    return output


def gate(gated: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(gated) * up (SwiGLU, Shazeer 2020)."""
    return silu(gated).mul_(up)


def gate_backward(
    grad: torch.Tensor, gated: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of gated and up; grad is used up."""
    grad_up = silu(gated).mul_(grad)
    return torch.ops.aten.silu_backward(grad.mul_(up), gated), grad_up
