"""Our attention in transformers' own layers, where they run in place of our decoder."""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from src.model.core.attention import Spans
from src.model.core.kernels import attend

ISOLATED = "isolated"
NO_MASK = torch.empty(1, 1, 1, 1)
"""For a forward pass with spans: Transformers builds no mask, nor looks for examples to part, where
it is given one of four dimensions."""


def isolated_attention(
    module: nn.Module,
    query: torch.Tensor,  # (1, heads, tokens, head size)
    key: torch.Tensor,  # (1, key/value heads, tokens, head size)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    spans: Spans | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Serve transformers' attention interface; without spans it is transformers' own."""
    if spans is None:
        if sliding_window is not None:
            kwargs["sliding_window"] = sliding_window
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    output = attend(query, key, value, spans, scale=scaling, sliding_window=sliding_window)
    return output[None], None


AttentionInterface.register(ISOLATED, isolated_attention)
AttentionMaskInterface.register(ISOLATED, sdpa_mask)
