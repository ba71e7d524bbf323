"""The fast path: layers of the base model run as few steps instead of transformers' many."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from src.model.attention import ISOLATED, Spans, attend
from src.model.elementwise import normalize, rotate
from src.model.projections import project, project_gated


def use_fast_path(model: Any, *, off: Collection[str] = ()) -> list[str]:
    """Replace the forward of norms, attention, MLP and adapted layers; return what is left out.

    `off` names parts to leave out: norm, attention, mlp, lora. What the layers compute stays the
    same; generation with a cache keeps transformers' attention.
    """
    lines = [f"fast path: {part} is off, as asked" for part in sorted(off)]
    if "lora" not in off:
        lines += _fuse_adapted_layers(model)
    if model.config._attn_implementation != ISOLATED:
        lines.append(f"fast path: only lora is on: {model.config.model_type} is not known to it")
        return lines
    if model.config.hidden_act != "silu" and "mlp" not in off:
        lines.append(f"fast path: mlp is off: its activation is {model.config.hidden_act}")
        off = {*off, "mlp"}
    if "norm" not in off:
        for norm in [m for m in model.modules() if hasattr(m, "variance_epsilon")]:
            norm.forward = _norm_forward(norm)
    for layer in model.get_decoder().layers:
        if "attention" not in off:
            layer.self_attn.forward = _attention_forward(layer.self_attn)
        if "mlp" not in off:
            layer.mlp.forward = _mlp_forward(layer.mlp)
    return lines


def _fuse_adapted_layers(model: nn.Module) -> list[str]:
    adapted: list[Any] = [m for m in model.modules() if getattr(m, "lora_A", None)]
    for layer in adapted:
        if isinstance(layer.base_layer, nn.Linear):
            layer.forward = _adapted_forward(layer)
    unfit = {
        type(m.base_layer).__name__ for m in adapted if not isinstance(m.base_layer, nn.Linear)
    }
    return [f"fast path: lora is off for {name}" for name in sorted(unfit)]


def _adapted_forward(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        (output,) = project(x.reshape(-1, x.shape[-1]), (layer,))
        return output.view(*x.shape[:-1], -1)

    return forward


def _norm_forward(norm: Any) -> Callable[..., torch.Tensor]:
    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        return normalize(hidden_states, norm.weight, norm.variance_epsilon)

    return forward


def _attention_forward(attention: Any) -> Callable[..., Any]:
    plain = attention.forward
    inputs = attention.q_proj, attention.k_proj, attention.v_proj
    # Llama has none; Mistral reads it from the configuration, Qwen from the layer.
    window = None
    if hasattr(attention, "sliding_window"):
        window = attention.sliding_window
    elif attention.config.model_type == "mistral":
        window = getattr(attention.config, "sliding_window", None)
    query_norm: nn.Module = getattr(attention, "q_norm", None) or nn.Identity()
    key_norm: nn.Module = getattr(attention, "k_norm", None) or nn.Identity()

    def forward(
        hidden_states: torch.Tensor,  # (1, tokens, hidden size)
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        spans: Spans | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if spans is None:
            return plain(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        heads = (
            x.view(x.shape[0], -1, attention.head_dim) for x in project(hidden_states[0], inputs)
        )
        query, key, value = heads
        # Both halves of transformers' tables are the same.
        cos, sin = (x[0, :, None, : attention.head_dim // 2] for x in position_embeddings)
        output = attend(
            rotate(query_norm(query), cos, sin),
            rotate(key_norm(key), cos, sin),
            value,
            spans,
            scale=attention.scaling,
            sliding_window=window,
        )
        (output,) = project(output.flatten(1), (attention.o_proj,))
        return output[None], None

    return forward


def _mlp_forward(mlp: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        gated, up = project(rows, (mlp.gate_proj, mlp.up_proj))
        return project_gated(gated, up, mlp.down_proj).view(x.shape)

    return forward
