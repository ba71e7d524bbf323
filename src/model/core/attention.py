"""Attention that keeps to its span, in plain calls: sequences end to end never see each other."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

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

    def of_tokens(self, num_tokens: int) -> torch.Tensor:
        """Return the number of each token's span (tokens,), from 1 on."""
        positions = torch.arange(num_tokens, device=self.offsets.device)
        return torch.searchsorted(self.offsets, positions, right=True)

    def lengths_of_tokens(self, num_tokens: int) -> torch.Tensor:
        """Return the length of each token's span (tokens,)."""
        return self.offsets.diff()[self.of_tokens(num_tokens) - 1]


def attend_one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Spans,
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
    score_cap: float | None = None,
    sinks: torch.Tensor | None = None,  # (heads,)
) -> torch.Tensor:
    """Attend causally within each span, one call for each; return (tokens, heads, head size)."""
    assert spans.lengths is not None
    outputs = []
    # One split, and not a slice for each span: its backward pass is one concatenation.
    rows = (x.transpose(0, 1)[None].split(spans.lengths, dim=2) for x in (query, key, value))
    for span_query, span_key, span_value in zip(*rows, strict=True):
        mask, num_tokens = None, span_query.shape[2]
        if sliding_window is not None and num_tokens > sliding_window:
            positions = torch.arange(num_tokens, device=query.device)
            mask = sees(positions, positions, sliding_window)
        output = attend_under(mask, span_query, span_key, span_value, scale, score_cap, sinks)
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
    sinks: torch.Tensor | None = None,  # (heads,)
) -> torch.Tensor:
    """Do what `attend_one_by_one` does in one call, for lengths that only the device knows."""
    positions, span = torch.arange(len(query), device=query.device), spans.of_tokens(len(query))
    mask = sees(positions, positions, sliding_window) & (span[:, None] == span)
    query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
    return attend_under(mask, query, key, value, scale, score_cap, sinks)[0].transpose(0, 1)


def attend_under(
    mask: torch.Tensor | None,  # (queries, keys), True where a query sees a key; None is causal
    query: torch.Tensor,  # (1, heads, queries, head size)
    key: torch.Tensor,  # (1, key/value heads, keys, head size)
    value: torch.Tensor,
    scale: float | None,
    score_cap: float | None,
    sinks: torch.Tensor | None,  # (heads,)
) -> torch.Tensor:
    """Attend in one call, or step by step with capped scores (Gemma 2, 2024) and with sinks."""
    is_small = query.device.type == "cpu" and query.dtype.itemsize < 4
    if score_cap is not None or sinks is not None or (is_small and key.shape[2] <= SHORT):
        num_keys = key.shape[2]
        if mask is None:
            size = max(SHORT, 1 << (num_keys - 1).bit_length())  # few sizes
            bias = _causal_bias(size, query.device)[:num_keys, :num_keys]
        else:
            bias = mask_bias(mask)
        # The query heads that share a key head are its queries: no key is repeated.
        grouped = query.reshape(1, key.shape[1], -1, query.shape[-1])
        output = attend_in_steps(bias, grouped, key, value, scale, score_cap, sinks)
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
    sinks: torch.Tensor | None,  # (heads * groups,)
) -> torch.Tensor:
    """Attend by plain products, with softmax in float32.

    A sink (gpt-oss, 2025) is a score of its head that takes part in the softmax, without a value.
    """
    scores = (query * (scale or query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)
    shape = scores.shape
    if score_cap is not None:
        scores = score_cap * torch.tanh(scores.float() / score_cap)
    if bias is not None:
        scores = (scores.view(*shape[:2], -1, *bias.shape[-2:]) + bias).view(shape)
    scores = scores.float()
    weights = scores.softmax(-1)
    output = weights.to(value.dtype) @ value
    if sinks is None:
        return output
    largest, at = scores.max(-1, keepdim=True)
    log_sum = largest - weights.gather(-1, at).log()  # of the exponentials of scores
    of_query = sinks.float().repeat_interleave(shape[1] * shape[2] // len(sinks))
    return output * (log_sum - of_query.view(*shape[1:3], 1)).sigmoid().to(output.dtype)


def mask_bias(mask: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return what added to scores hides the keys that a query does not see.

    It is not minus infinity: a query that sees nothing must stay finite.
    """
    return torch.where(mask, 0.0, torch.finfo(dtype).min / 2).to(dtype)


@lru_cache(maxsize=1)
def _causal_bias(size: int, device: torch.device) -> torch.Tensor:
    return mask_bias(torch.ones(size, size, dtype=torch.bool, device=device).tril())


def sees(queries: torch.Tensor, keys: torch.Tensor, window: int | None) -> torch.Tensor:
    """Return which keys each query sees (queries, keys), by their positions.

    A window is None, or how many of the last tokens are seen.
    """
    distance = queries[:, None] - keys
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)
