"""The forward pass of Llama-type models over the key/value cache, lean enough for one token."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import embedding, silu

from src.out_of_memory import trim_heap
from src.serving.lora.stacked import LoraBatch
from src.serving.model.attention import KVCache
from src.serving.model.layers import Projection, RMSNorm, RotaryTable, rotate_

Attention = Callable[[torch.Tensor, int, int | None], torch.Tensor]


class _Layer:
    def __init__(self, name: str, layer: Any, window: int | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp

        def projection(parent: str, *parts: str) -> Projection:
            module = attention if parent == "self_attn" else mlp
            names = [f"{name}.{parent}.{part}" for part in parts]
            return Projection(names, [getattr(module, part) for part in parts])

        self.window = window
        self.qkv = projection("self_attn", "q_proj", "k_proj", "v_proj")
        self.o = projection("self_attn", "o_proj")
        self.gate_up = projection("mlp", "gate_proj", "up_proj")
        self.down = projection("mlp", "down_proj")
        self.projections = (self.qkv, self.o, self.gate_up, self.down)
        self.input_norm = RMSNorm(layer.input_layernorm)
        self.mlp_norm = RMSNorm(layer.post_attention_layernorm)
        trim_heap()  # weights that became parts of wider ones have left gaps


@dataclass(frozen=True)
class _Buffers:
    """Where a row that steps alone is written, and the views of its parts.

    A CPU takes longer to make tensors and views than to compute those of one row.
    """

    qkv: torch.Tensor | None = None
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    gate_up: torch.Tensor | None = None
    gate_and_up: tuple[torch.Tensor, ...] | None = None


class LlamaModel:
    """Runs on the weights of a loaded model; `refusal` tells which models it knows."""

    def __init__(self, model: Any) -> None:
        config = model.config
        self.num_heads: int = config.num_attention_heads
        self._key_value_heads: int = config.num_key_value_heads
        body = model.model
        self._embedding: torch.Tensor = body.embed_tokens.weight
        self._norm = RMSNorm(body.norm)
        self._layers = [
            _Layer(f"model.layers.{number}", layer, _window(layer, config))
            for number, layer in enumerate(body.layers)
        ]
        self._head = Projection(["lm_head"], [model.lm_head])
        self.projections = [p for layer in self._layers for p in layer.projections] + [self._head]
        self.windows = frozenset(layer.window for layer in self._layers)
        self.num_layers = len(self._layers)
        self.num_key_value_heads = self._key_value_heads
        self.dtype, self.device = self._embedding.dtype, self._embedding.device
        self.like = self._embedding
        self.head_size: int = body.layers[0].self_attn.head_dim
        self.bytes_per_token = (
            2 * self.num_layers * self._key_value_heads * self.head_size * self.dtype.itemsize
        )
        self.vocab_size: int = model.lm_head.out_features
        self.rotary = RotaryTable(body.rotary_emb, dtype=self._embedding.dtype)
        self._buffers_of_one, self._no_buffers = self._make_buffers(), _Buffers()

    def _make_buffers(self) -> _Buffers:
        can_write = all(layer.qkv.is_fused and layer.gate_up.is_fused for layer in self._layers)
        if self.device.type != "cpu" or not can_write:
            return _Buffers()
        layer = self._layers[0]
        qkv = self.like.new_empty((1, sum(layer.qkv.out_features)))
        gate_up = self.like.new_empty((1, sum(layer.gate_up.out_features)))
        return _Buffers(qkv, self._split(qkv), gate_up, gate_up.chunk(2, -1))

    def _split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the heads that ask, those that turn by their position, and those kept."""
        heads = qkv.view(len(qkv), -1, self.head_size)
        num_rotated = self.num_heads + self._key_value_heads
        return heads[:, : self.num_heads], heads[:, :num_rotated], heads[:, self.num_heads :]

    def hidden(
        self,
        ids: torch.Tensor,  # (tokens,)
        positions: torch.Tensor,  # (tokens,)
        cache: KVCache,
        slot_mapping: torch.Tensor,  # (tokens,) where in the flat cache they belong
        attention: Attention,
        adapters: LoraBatch | None,
    ) -> torch.Tensor:
        """Read tokens into the cache and return their last hidden states (tokens, hidden)."""
        x = embedding(ids, self._embedding)
        cos, sin = self.rotary.rows(positions)
        buffers = self._buffers_of_one if len(ids) == 1 else self._no_buffers
        group = 0
        for number, layer in enumerate(self._layers):
            h = layer.input_norm(x)
            qkv = layer.qkv(h, buffers.qkv)
            if adapters is not None:
                adapters.add_(qkv, group, h)
            query, rotated, kept = buffers.heads or self._split(qkv)
            rotate_(rotated, cos, sin)
            cache.flat[number].index_copy_(0, slot_mapping, kept)
            h = attention(query, number, layer.window)
            x = layer.o.add_to(x, h)
            if adapters is not None:
                adapters.add_(x, group + 1, h)
            h = layer.mlp_norm(x)
            gate_up = layer.gate_up(h, buffers.gate_up)
            if adapters is not None:
                adapters.add_(gate_up, group + 2, h)
            gate, up = buffers.gate_and_up or gate_up.chunk(2, -1)
            h = silu(gate).mul_(up)
            x = layer.down.add_to(x, h)
            if adapters is not None:
                adapters.add_(x, group + 3, h)
            group += 4
        return x

    def logits(self, hidden: torch.Tensor, adapters: LoraBatch | None) -> torch.Tensor:
        """Return the scores of the next token (rows, vocabulary)."""
        h = self._norm(hidden)
        logits = self._head(h)
        if adapters is not None:
            adapters.add_(logits, len(self.projections) - 1, h)
        return logits


def _window(layer: Any, config: Any) -> int | None:
    if config.model_type == "mistral":
        return config.sliding_window
    return layer.self_attn.sliding_window if config.model_type == "qwen2" else None


def refusal(model: Any) -> str | None:
    """Return why a model's layout is not this decoder's; None when it is."""
    config = model.config
    if config.model_type not in {"llama", "mistral", "qwen2"}:
        return f"its architecture is {config.model_type}"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    rotary = model.model.rotary_emb
    if rotary.rope_type not in {"default", "linear", "llama3", "yarn"}:
        return f"its rotary embedding is {rotary.rope_type}"
    if 2 * len(rotary.inv_freq) != model.model.layers[0].self_attn.head_dim:
        return "its rotary embedding turns a part of each head"
    return None
