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
    spans: Spans | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Serve transformers' attention interface; without spans it is transformers' own."""
    if spans is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    scale, window = options["scaling"], options.get("sliding_window")
    return attend(query, key, value, spans, scale=scale, sliding_window=window)[None], None


AttentionInterface.register(ISOLATED, isolated_attention)
AttentionMaskInterface.register(ISOLATED, sdpa_mask)
