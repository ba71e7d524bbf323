"""Attention over the spans of a pass by the fastest kernel that proves to be right here."""

import warnings
from collections.abc import Callable
from functools import cache
from inspect import signature
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from src.model.core.attention import Spans, attend_by_mask, attend_one_by_one

Kernel = Callable[..., Tensor]
"""Takes query, key, value, spans and the options of `attend`."""
MIN_BATCH_TOKENS = 2048
LENGTH_STEP = 128
"""cuDNN takes up to a second to plan for each new number and length of rows. So it gets no short
passes, which gain little, and only round lengths, such as full rows have: few shapes, often."""
TOLERANCE = 0.02
"""Relative difference from float32 of output and gradients; that of bfloat16 is 0.003."""


class Heads(NamedTuple):
    """What a kernel has to take."""

    device: torch.device
    dtype: torch.dtype
    num_heads: int
    num_key_heads: int
    size: int


def attend(
    query: Tensor,  # (tokens, heads, head size)
    key: Tensor,  # (tokens, key/value heads, head size)
    value: Tensor,
    spans: Spans,
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
    score_cap: float | None = None,
    sinks: Tensor | None = None,  # (heads,)
) -> Tensor:
    """Attend causally within each span; return (tokens, heads, head size)."""
    heads = Heads(query.device, query.dtype, query.shape[1], *key.shape[1:])
    kernel = choose_kernel(
        spans.lengths,
        sliding_window=sliding_window,
        is_plain=score_cap is not None or sinks is not None,
        is_right=lambda kernel: unsupported_reason(kernel, heads) is None,
    )
    options: dict[str, Any] = {"scale": scale, "sliding_window": sliding_window}
    if score_cap is not None or sinks is not None:
        options |= {"score_cap": score_cap, "sinks": sinks}
    return kernel(query, key, value, spans, **options)


def choose_kernel(
    lengths: tuple[int, ...] | None,
    *,
    sliding_window: int | None,
    is_plain: bool,
    is_right: Callable[[Kernel], bool],
) -> Kernel:
    """Return the fastest kernel that takes spans of these lengths; None where they are unknown.

    Capped scores and sinks are done in plain steps.
    """
    if not is_plain:
        if lengths and _fill_batch(lengths, sliding_window) and is_right(attend_in_batch):
            return attend_in_batch
        if is_right(attend_varlen):
            return attend_varlen
    # A mask over the row is built only where it has to be.
    return attend_one_by_one if lengths else attend_by_mask


def _fill_batch(lengths: tuple[int, ...], sliding_window: int | None) -> bool:
    length = lengths[0]
    return (
        lengths == (length,) * len(lengths)
        and length % LENGTH_STEP == 0
        and sum(lengths) >= MIN_BATCH_TOKENS
        and (sliding_window is None or sliding_window >= length)
    )


def attend_in_batch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Spans,
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
    backend: SDPBackend = SDPBackend.CUDNN_ATTENTION,
) -> Tensor:
    """Do what `attend` does where all spans have one length, which no window is shorter than."""
    assert spans.lengths is not None
    shape = len(spans.lengths), spans.lengths[0]
    batch_query, batch_key, batch_value = (
        x.unflatten(0, shape).transpose(1, 2) for x in (query, key, value)
    )
    with sdpa_kernel(backend):
        output = scaled_dot_product_attention(
            *(batch_query, batch_key, batch_value),
            is_causal=True,
            scale=scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )
    return output.transpose(1, 2).flatten(0, 1)


def attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Spans,
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """Do what `attend` does with one kernel for spans of any lengths, which the device knows."""
    # This import takes a second or two, which only a GPU gives back.
    from torch.nn.attention.varlen import varlen_attn

    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    options: dict[str, Any] = {}
    # Before torch 2.12 fewer heads of keys were taken without being asked for.
    if "enable_gqa" in _arguments(varlen_attn):
        options["enable_gqa"] = key.shape[1] != query.shape[1]
    output = varlen_attn(
        *(query, key, value, spans.offsets, spans.offsets, spans.longest, spans.longest),
        scale=scale,
        window_size=window,
        **options,
    )
    assert isinstance(output, Tensor)
    return output


@cache
def _arguments(function: Any) -> frozenset[str]:
    return frozenset(signature(function).parameters)


def prove_kernels(heads: Heads, plain_reason: str | None) -> str | None:
    """Return which kernels a GPU will use, and why no faster ones, after trying them.

    None where it is no GPU.
    """
    if heads.device.type != "cuda":
        return None
    by_span = "attention is a call for each example"
    if plain_reason is not None:
        return f"{by_span}: {plain_reason}"
    against_varlen = unsupported_reason(attend_varlen, heads)
    line = f"{by_span}, not varlen: {against_varlen}" if against_varlen else "attention is varlen"
    if reason := unsupported_reason(attend_in_batch, heads):
        return f"{line}; not cuDNN: {reason}"
    return f"{line}; cuDNN in long passes of equal examples, by lengths in steps of {LENGTH_STEP}"


def unsupported_reason(kernel: Kernel, heads: Heads) -> str | None:
    """Return why a kernel cannot be used, or None after trying it."""
    if heads.device.type != "cuda":
        return "it runs on GPUs"
    if kernel is attend_in_batch and torch.are_deterministic_algorithms_enabled():
        return "its backward pass adds up in any order"
    return find_fault_once(kernel, heads)


@cache
def find_fault_once(kernel: Kernel, heads: Heads) -> str | None:
    """Return what `find_fault` does for spans that a kernel takes."""
    if kernel is attend_in_batch:
        return find_fault(kernel, heads, (512, 512))
    return find_fault(kernel, heads, (31, 17)) or find_fault(kernel, heads, (31, 17), window=8)


def find_fault(
    kernel: Kernel, heads: Heads, lengths: tuple[int, ...], *, window: int | None = None
) -> str | None:
    """Return how output or gradients of a kernel differ from those in float32, or its error."""
    device, dtype, num_heads, num_key_heads, size = heads
    generator = torch.Generator(device).manual_seed(0)
    query, key, value, gradient = (
        torch.randn((sum(lengths), n, size), generator=generator, device=device).to(dtype)
        for n in (num_heads, num_key_heads, num_key_heads, num_heads)
    )
    spans = Spans.between(tuple(accumulate(lengths, initial=0)), device)

    def run(kernel: Kernel, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (query, key, value)]
        # Some families scale their scores otherwise than by size ** -0.5, the kernels' default.
        output = kernel(*leaves, spans, scale=1.5 * size**-0.5, sliding_window=window)
        return output.detach(), *torch.autograd.grad(output, leaves, gradient.to(dtype))

    # In a layer that is recomputed later, nothing kept here counts as kept by the layer.
    keep_apart = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with torch.enable_grad(), keep_apart, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = run(kernel, dtype)
        except Exception as error:
            # Where torch finds no kernel, it warned of the reason.
            reasons = [str(error), *(str(warning.message) for warning in told[-1:])]
            lines = (text.partition("\n")[0].partition(" (Triggered")[0] for text in reasons)
            return f"{type(error).__name__}: {' '.join(lines)}"
        expected = run(attend_one_by_one, torch.float32)
    for one, other in zip(found, expected, strict=True):
        # By the norm: single numbers of two right ways in bfloat16 can differ by far.
        if not (one - other).norm() <= TOLERANCE * other.norm():
            return "its results differ from those in float32"
    return None
