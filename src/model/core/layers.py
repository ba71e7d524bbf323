"""The parts of a decoder layer, as functions of tensors (tokens, features)."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import gelu, linear, rms_norm, silu
from torch.utils.checkpoint import checkpoint

from src.model.core.float8 import convert, fits

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu_pytorch_tanh": partial(gelu, approximate="tanh"),
}


NUM_BEST = 64
"""Scores of a token that are computed in float32 where the others have 16 bits."""


class Norm(NamedTuple):
    """An RMS norm (Zhang and Sennrich 2019)."""

    weight: Tensor  # (features,); of a wider dtype, where the product with it is to be made in that
    epsilon: float


def normalize(x: Tensor, norm: Norm | None, dtype: torch.dtype) -> Tensor:
    """Return x in a dtype, its last dimension scaled to unit mean square where there is a norm."""
    if norm is None:
        return x.to(dtype)
    weight, epsilon = norm
    wide = torch.promote_types(x.dtype, weight.dtype)
    return rms_norm(x.to(wide), weight.shape, weight.to(wide), epsilon).to(dtype)


def rotate(x: Tensor, rope: tuple[Tensor, ...], is_interleaved: bool) -> Tensor:
    """Return heads (tokens, heads, head size) turned by their position (RoFormer, Su et al. 2021).

    `rope` is what `RotaryTable.rows` returns; the rest of a head stays.
    """
    cos, sin = rope
    turned, rest = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), dim=-1)
    if is_interleaved:
        swapped = turned.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    else:
        swapped = turned.roll(turned.shape[-1] // 2, dims=-1)
    turned = torch.addcmul(turned * cos, swapped, sin).to(x.dtype)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


class RotaryTable:
    """Cosines and sines of all positions, as the base model's own rotary embedding makes them."""

    def __init__(
        self,
        embedding: Any,
        name: str,
        like: Tensor,
        *,
        is_interleaved: bool,
        is_doubled: bool = True,
        short_length: int | None = None,
    ) -> None:
        """`short_length` is that of `Switches`."""
        self._embedding, self._name, self._like = embedding, name, like
        self._is_interleaved, self._is_doubled = is_interleaved, is_doubled
        self._num_known, self._short_length = 0, short_length
        self._tables = [torch.empty(0)]
        """The last one counts: captured passes may still read those before. Where some texts are
        long, all positions of short ones come first, and all of long ones behind them."""

    def grow(self, num_positions: int) -> None:
        """Know at least this many positions."""
        if num_positions <= self._num_known:
            return
        # So that all tables together are twice the last.
        self._num_known = max(num_positions, 2 * self._num_known)
        sizes = [self._num_known]
        if self._short_length is not None and self._num_known > self._short_length:
            sizes.insert(0, self._short_length)
        self._tables.append(torch.cat([self._make(size) for size in sizes]))

    def _make(self, num_positions: int) -> Tensor:
        """Return the table of a text of so many tokens."""
        positions = torch.arange(num_positions, device=self._like.device)
        names = (self._name,) if self._name else ()
        cos, sin = (x[0] for x in self._embedding(self._like, positions[None], *names))
        # The halves of doubled tables are the same. The minus of the rotation is in ours.
        half = cos.shape[-1] // (2 if self._is_doubled else 1)
        cos, sin = cos[:, :half], sin[:, :half]
        parts = torch.stack((cos, cos, -sin, sin)).view(2, 2, num_positions, half)
        order = (2, 0, 3, 1) if self._is_interleaved else (2, 0, 1, 3)
        return parts.permute(order).reshape(num_positions, 2, 1, 2 * half)

    def rows(self, positions: Tensor, text_lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return (cosines, sines) of these positions, each (tokens, 1, rotated size).

        `text_lengths` are what `Decoder.locate` takes.
        """
        if self._short_length is not None and self._num_known > self._short_length:
            lengths = positions + 1 if text_lengths is None else text_lengths
            positions = positions + self._short_length * (lengths > self._short_length)
        return self._tables[-1].index_select(0, positions).unbind(1)


class Positions(NamedTuple):
    """What the layers need to know of where tokens stand."""

    ropes: dict[str, tuple[Tensor, ...]]
    """Cosines and sines (tokens, 1, rotated size) by the name of the rotary embedding."""
    query_growth: Tensor | None  # (tokens, 1, 1)

    def rope(self, name: str | None) -> tuple[Tensor, ...] | None:
        """Return those of an embedding; None where there is none."""
        return None if name is None else self.ropes[name]


def recomputed(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """Call a function of few steps, which are run again for the backward pass.

    Memory is dearer than they are (Chen et al. 2016), in compiled layers too.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(
        function, *inputs, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
    )


@torch.library.custom_op("core::sum_over_ranks", mutates_args=())
def sum_over_ranks(part: Tensor) -> Tensor:
    """Return the sum of what all ranks have: one step for the compiler."""
    total = part.clone()
    dist.all_reduce(total)
    return total


@sum_over_ranks.register_fake
def _(part: Tensor) -> Tensor:
    return torch.empty_like(part)


class Projection:
    """Linear layers of the base model that read the same input."""

    def __init__(self, names: list[str], modules: list[Any]) -> None:
        self.names, self.modules = tuple(names), tuple(modules)
        sizes = [(m.out_features, m.in_features) for m in modules]
        self.in_features: int = sizes[0][1]
        self.out_features: tuple[int, ...] = tuple(out for out, _ in sizes)

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Return the outputs (tokens, out features) of each layer."""
        return [product(x, module) for module in self.modules]

    def hold_in_float8(self, *, for_training: bool) -> int:
        """Hold the weights in float8 alone, if their sizes allow it; return of how many layers."""
        layers = [getattr(module, "base_layer", module) for module in self.modules]
        held = [layer for layer in layers if fits(layer.weight)]
        for layer in held:
            convert(layer, for_training=for_training)
        return len(held)


def score_in_float32(x: Tensor, head: Any) -> Tensor:
    """Return the scores (tokens, vocabulary) of float32 x by a head whose weights have 16 bits.

    Rounded to 16 bits the best of them tie: those are computed again, from the same weights.
    """
    scores = product(x.to(head.weight.dtype), head).float()
    best = scores.topk(min(NUM_BEST, scores.shape[-1]), sorted=False).indices
    exact = (head.weight[best].float() @ x[:, :, None])[:, :, 0]
    if head.bias is not None:
        exact += head.bias[best]
    return scores.scatter_(1, best, exact)


def product(x: Tensor, module: Any) -> Tensor:
    """Return the output of a frozen layer; one in 4-bit unpacks itself in both passes."""
    module = getattr(module, "base_layer", module)
    if (frozen := getattr(module, "float8", None)) is not None:
        output = frozen.product(x)
        return output if module.bias is None else output + module.bias
    if getattr(module.weight, "quant_state", None) is not None:
        return module(x)
    return linear(x, module.weight, module.bias)
