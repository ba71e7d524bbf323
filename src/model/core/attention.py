"""Attention that keeps to its span: sequences laid end to end never see each other."""

from dataclasses import dataclass
from functools import cache, lru_cache
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from src.transfer import to_device

SHORT = 256
"""Up to so many keys in 16 bits, plain products are faster than torch's kernel on a CPU.

Their scores are kept for the backward pass: of more keys they would take the most memory.
"""


@dataclass(frozen=True)
class Spans:
    """Where the sequences of a row begin and end."""

    lengths: tuple[int, ...] | None
    """None where only the device knows them, as in a captured pass."""
    offsets: torch.Tensor  # (spans + 1,) int32, on the device
    longest: int
    """At least the longest of the lengths."""

    @classmethod
    def between(cls, boundaries: tuple[int, ...], device: torch.device) -> "Spans":
        """Return the spans between boundaries that start with 0."""
        lengths = tuple(stop - start for start, stop in pairwise(boundaries))
        offsets = torch.tensor(boundaries, dtype=torch.int32)
        return cls(lengths, to_device(offsets, device), max(lengths))


def attend(
    query: torch.Tensor,  # (tokens, heads, head size)
    key: torch.Tensor,  # (tokens, key/value heads, head size)
    value: torch.Tensor,
    spans: Spans,
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
    score_cap: float | None = None,
) -> torch.Tensor:
    """Attend causally within each span; return (tokens, heads, head size).

    On a GPU one kernel takes all spans, elsewhere each is a call; a mask over the row is built only
    where their lengths are not known.
    """
    options: dict[str, Any] = {"scale": scale, "sliding_window": sliding_window}
    is_plain = score_cap is None
    if (
        is_plain
        and query.device.type == "cuda"
        and varlen_unsupported_reason(query.device, query.dtype) is None
    ):
        return _attend_varlen(query, key, value, spans, scale, sliding_window)
    way = attend_one_by_one if spans.lengths else attend_by_mask
    return way(query, key, value, spans, score_cap=score_cap, **options)


def _attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Spans,
    scale: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    # This import takes a second or two, which only a GPU gives back.
    from torch.nn.attention.varlen import varlen_attn

    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    # Before torch 2.12 fewer heads of keys were taken without being asked for.
    is_grouped = key.shape[1] != query.shape[1]
    options: dict[str, Any] = {}
    if "enable_gqa" in _arguments(varlen_attn):
        options["enable_gqa"] = is_grouped
    output = varlen_attn(
        *(query, key, value, spans.offsets, spans.offsets, spans.longest, spans.longest),
        scale=scale,
        window_size=window,
        **options,
    )
    assert isinstance(output, torch.Tensor)
    return output


def attend_one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Spans,
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
    score_cap: float | None = None,
) -> torch.Tensor:
    """Do what `attend` does with one call for each span."""
    assert spans.lengths is not None
    outputs = []
    # One split, and not a slice for each span: its backward pass is one concatenation.
    rows = (x.transpose(0, 1)[None].split(spans.lengths, dim=2) for x in (query, key, value))
    for span_query, span_key, span_value in zip(*rows, strict=True):
        mask = _window_mask(span_query.shape[2], sliding_window, query.device)
        output = attend_under(mask, span_query, span_key, span_value, scale, score_cap)
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


def attend_by_mask(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Spans,
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
    score_cap: float | None = None,
) -> torch.Tensor:
    """Do what `attend` does with one call over the row."""
    positions = torch.arange(len(query), device=query.device)
    span = torch.searchsorted(spans.offsets, positions, right=True)
    distance = positions[:, None] - positions[None, :]
    mask = (span[:, None] == span[None, :]) & (distance >= 0)
    if sliding_window is not None:
        mask &= distance < sliding_window
    query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
    return attend_under(mask, query, key, value, scale, score_cap)[0].transpose(0, 1)


def attend_under(
    mask: torch.Tensor | None,  # (queries, keys), True where a query sees a key; None is causal
    query: torch.Tensor,  # (1, heads, queries, head size)
    key: torch.Tensor,  # (1, key/value heads, keys, head size)
    value: torch.Tensor,
    scale: float | None,
    score_cap: float | None,
) -> torch.Tensor:
    """Attend in one call, or step by step with capped scores (Gemma 2, 2024)."""
    is_small = query.device.type == "cpu" and query.dtype != torch.float32
    if score_cap is not None or (is_small and key.shape[2] <= SHORT):
        num_keys = key.shape[2]
        if mask is None:
            bias = _causal_bias(max(num_keys, SHORT), query.device)[:num_keys, :num_keys]
        else:
            bias = mask_bias(mask)
        # The query heads that share a key head are its queries: no key is repeated.
        grouped = query.reshape(1, key.shape[1], -1, query.shape[-1])
        output = attend_in_steps(bias, grouped, key, value, scale, score_cap)
        return output.view(query.shape)
    return scaled_dot_product_attention(
        *(query, key, value),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=key.shape[1] != query.shape[1],
    )


def attend_in_steps(
    bias: torch.Tensor | None,  # (rows, 1, 1, own queries, keys) or less: what `mask_bias` returns
    query: torch.Tensor,  # (rows, heads, groups * own queries, head size)
    key: torch.Tensor,  # (rows, heads, keys, head size)
    value: torch.Tensor,
    scale: float | None,
    score_cap: float | None,
) -> torch.Tensor:
    """Attend by plain products, with softmax in float32."""
    scores = (query * (scale or query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)
    shape = scores.shape
    if score_cap is not None:
        scores = score_cap * torch.tanh(scores.float() / score_cap)
    if bias is not None:
        scores = (scores.view(*shape[:2], -1, *bias.shape[-2:]) + bias).view(shape)
    return scores.float().softmax(-1).to(value.dtype) @ value


def mask_bias(mask: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return what added to scores hides the keys that a query does not see.

    It is not minus infinity: a query that sees nothing must stay finite.
    """
    return torch.where(mask, 0.0, torch.finfo(dtype).min / 2).to(dtype)


@lru_cache(maxsize=1)
def _causal_bias(size: int, device: torch.device) -> torch.Tensor:
    return mask_bias(torch.ones(size, size, dtype=torch.bool, device=device).tril())


def _window_mask(
    num_tokens: int, sliding_window: int | None, device: torch.device
) -> torch.Tensor | None:
    if sliding_window is None or num_tokens <= sliding_window:
        return None
    positions = torch.arange(num_tokens, device=device)
    distance = positions[:, None] - positions[None, :]
    return (distance >= 0) & (distance < sliding_window)


@cache
def _arguments(function: Any) -> frozenset[str]:
    return frozenset(signature(function).parameters)


@cache
def varlen_unsupported_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why one kernel cannot take all spans on this device, or None after trying it.

    To be called before the first pass, in which a layer may be recomputed.
    """
    if device.type != "cuda":
        return None
    generator = torch.Generator(device).manual_seed(0)
    spans = Spans.between((0, 31, 48), device)
    for num_key_heads in (4, 2):
        shapes = [(48, heads, 64) for heads in (4, num_key_heads, num_key_heads)]
        inputs = [
            torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes
        ]
        found: list[tuple[torch.Tensor, ...]] = []
        try:
            for way in (
                lambda q, k, v: _attend_varlen(q, k, v, spans, None, None),
                lambda q, k, v: attend_one_by_one(q, k, v, spans),
            ):
                with torch.enable_grad():
                    leaves = [x.clone().requires_grad_() for x in inputs]
                    output = way(*leaves)
                    gradients = torch.autograd.grad(output.float().square().sum(), leaves)
                found.append((output, *gradients))
        except Exception as error:
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        for one, other in zip(*found, strict=True):
            # By the norm: single numbers of two right ways in bfloat16 can differ by far.
            if not (one - other).float().norm() <= 0.02 * other.float().norm():
                return "its results differ from those of one call for each span"
    return None
