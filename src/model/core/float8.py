"""Frozen weights in float8, and their products with inputs that are quantised on the way.

A number is kept as float8 e4m3 (Micikevicius et al. 2022) and a scale of its row. Tensor cores
multiply rows along which both sides run, so a weight is kept in two orders: one for the product
and one for the gradient of its input. Together they take the memory of bfloat16.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from src.errors import UserError

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
LEAST_CAPABILITY = (8, 9)
ALIGNMENT = 16
"""Both sizes of a weight are multiples of it."""
MAX_ERROR = 0.06
"""Of a product of random numbers, relative to its norm; 0.037 is what rounding makes."""


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of x (rows, columns) in float8 and their scales (rows, 1) in float32.

    The largest number of a row, which counts most in a product, stays exact.
    """
    scale = x.abs().amax(1, keepdim=True).float().clamp(min=1e-30) / LARGEST
    return (x.float() / scale).to(FLOAT8), scale


def multiply(x: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    """Return x (tokens, in) times the transpose of a weight in float8 (out, in)."""
    quantized, x_scale = quantize(x)
    if x.device.type == "cpu":
        # The same arithmetic: every float8 number is exact in the dtype of x.
        product = linear(quantized.to(x.dtype), rows.to(x.dtype))
        return (product * x_scale * scale.T).to(x.dtype)
    return torch._scaled_mm(  # type: ignore[attr-defined]
        quantized.contiguous(),  # a gradient may be transposed in memory
        rows.T,
        scale_a=x_scale,
        scale_b=scale.T,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    ).to(x.dtype)


@dataclass(frozen=True)
class Float8Weight:
    """A frozen weight (out_features, in_features) in float8."""

    rows: Tensor  # (out, in)
    scale: Tensor  # (out, 1)
    columns: Tensor | None = None  # (in, out)
    column_scale: Tensor | None = None  # (in, 1)
    """The other order, for the gradient of the input; serving does without."""

    @classmethod
    def of(cls, weight: Tensor, *, for_training: bool) -> "Float8Weight":
        """Return a weight quantised by its rows, and for training by its columns too."""
        columns = quantize(weight.T.contiguous()) if for_training else ()
        return cls(*quantize(weight.contiguous()), *columns)

    def product(self, x: Tensor) -> Tensor:
        """Return x (tokens, in_features) times the transposed weight; x alone has a gradient."""
        product = _Product.apply(x, *vars(self).values())
        assert isinstance(product, Tensor)
        return product

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the weight (out_features, in_features) that `product` multiplies with."""
        return (self.rows.float() * self.scale).to(dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rows: Tensor,
        scale: Tensor,
        columns: Tensor | None,
        column_scale: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(columns, column_scale)
        return multiply(x, rows, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        columns, column_scale = ctx.saved_tensors
        return multiply(grads[0], columns, column_scale), None, None, None, None


def fits(weight: Tensor) -> bool:
    """Return whether float8 products take a weight of this size."""
    return all(size % ALIGNMENT == 0 for size in weight.shape)


def convert(layer: Any, *, for_training: bool) -> None:
    """Have a linear layer keep its weight as `layer.float8` alone, and multiply with that."""
    frozen = Float8Weight.of(layer.weight.data, for_training=for_training)

    def forward(x: Tensor) -> Tensor:  # (..., in_features)
        product = frozen.product(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return product if layer.bias is None else product + layer.bias

    layer.weight, layer.float8, layer.forward = None, frozen, forward


def check_device(device: torch.device) -> None:
    """Raise UserError for a GPU that cannot multiply in float8; on a CPU that is emulated."""
    if device.type == "cuda" and (reason := _unsupported_reason(device)):
        name = torch.cuda.get_device_name(device)
        raise UserError(f"BASE_WEIGHTS: expected none on a {name}, found 'fp8': {reason}")


def _unsupported_reason(device: torch.device) -> str | None:
    major, minor = capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return f"its compute capability is {major}.{minor}, and 8.9 is needed"
    try:
        error = max(product_error(device, num_tokens) for num_tokens in (1, 17, 256))
    except (RuntimeError, ValueError) as refused:
        return f"torch {torch.__version__}: {str(refused).splitlines()[0]}"
    if not error < MAX_ERROR:
        return f"torch {torch.__version__} computes products that are {error:.0%} off"
    return None


def product_error(device: torch.device, num_tokens: int) -> float:
    """Return how far product and gradient of random numbers are from float32, by their norm."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)

    x, weight, grad = draw(num_tokens, 512).requires_grad_(), draw(768, 512), draw(num_tokens, 768)
    with torch.enable_grad():
        product = Float8Weight.of(weight, for_training=True).product(x)
        (gradient,) = torch.autograd.grad(product, x, grad)
    exact = x.float() @ weight.float().T, grad.float() @ weight.float()
    errors = (
        (found.float() - expected).norm() / expected.norm()
        for found, expected in zip((product, gradient), exact, strict=True)
    )
    return max(float(error.detach()) for error in errors)
