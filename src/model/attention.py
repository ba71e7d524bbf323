"""Attention that keeps to its span: sequences laid end to end never see each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ISOLATED = "isolated"

_needs_no_mask: ContextVar[bool] = ContextVar("needs_no_mask", default=False)

# Architectures that hand `span_boundaries` down to their attention unchanged.
ISOLATED_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})


def isolated_attention(
    module: nn.Module,
    query: torch.Tensor,  # (1, heads, tokens, head size)
    key: torch.Tensor,  # (1, key/value heads, tokens, head size)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    span_boundaries: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally within each span; no mask over the whole row is ever built."""
    if span_boundaries is None:
        if sliding_window is not None:
            kwargs["sliding_window"] = sliding_window
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    is_grouped = key.shape[1] != query.shape[1]
    outputs = []
    for start, stop in pairwise(span_boundaries):
        span = slice(start, stop)
        mask = _window_mask(stop - start, sliding_window, query.device)
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, span],
                key[:, :, span],
                value[:, :, span],
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=is_grouped,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _window_mask(
    num_tokens: int, sliding_window: int | None, device: torch.device
) -> torch.Tensor | None:
    if sliding_window is None or num_tokens <= sliding_window:
        return None
    positions = torch.arange(num_tokens, device=device)
    distance = positions[:, None] - positions[None, :]
    return (distance >= 0) & (distance < sliding_window)


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    return None if _needs_no_mask.get() else sdpa_mask(*args, **kwargs)


@contextmanager
def without_mask() -> Iterator[None]:
    """Build no mask in a forward pass whose spans are told by their boundaries."""
    token = _needs_no_mask.set(True)
    try:
        yield
    finally:
        _needs_no_mask.reset(token)


AttentionInterface.register(ISOLATED, isolated_attention)
AttentionMaskInterface.register(ISOLATED, _mask)
