"""A layer: its weights, read from the modules that transformers loaded, and what it computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from src.model.core.blocks.experts import Experts, mix_experts, read_experts
from src.model.core.blocks.gated_delta import (
    GatedDelta,
    gate_heads,
    read_gated_delta,
    read_gates,
)
from src.model.core.families.switches import Switches
from src.model.core.layers import (
    ACTIVATIONS,
    Norm,
    Projection,
    normalize,
    recomputed,
    rotate,
    sum_over_ranks,
)
from src.model.core.lora import Update, Updates

MixerInputs = tuple[Tensor, Tensor, Tensor]
"""Query, key and value (tokens, heads, head size); what `read_gates` returns of a gated delta."""


@dataclass(frozen=True)
class Layer:
    """The weights of a layer."""

    number: int
    number_of_kind: int
    """Among the layers with attention, or among those with a gated delta in its place."""
    window: int | None
    """How many of the last tokens it sees; None is all."""
    rope: str | None
    before_attention: Norm | None
    after_attention: Norm | None
    before_mlp: Norm | None
    after_mlp: Norm | None
    query_norm: Norm | None
    key_norm: Norm | None
    qkv: Projection
    """In a gated delta layer, all that reads its input: also the gate, strengths and decays."""
    o: Projection
    gate_up: Projection | None
    down: Projection | None
    """Of the MLP, or of an expert that all tokens share; then the first also tells its share."""
    experts: Experts | None
    sinks: Tensor | None
    """A score for each head that takes its share of the attention and gives nothing."""
    delta: GatedDelta | None
    """In place of attention."""
    is_gated: bool
    """Whether its queries come with a gate of what the attention gives."""
    qkv_sizes: tuple[int, ...]
    dtype: torch.dtype
    """Of what the products read."""
    is_part: bool = False
    """Whether other ranks hold the rest of its heads and inner features."""

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Return them in the order of `Updates`."""
        mlp = (self.gate_up, self.down)
        return self.qkv, self.o, *(part for part in mlp if part is not None)


def before_attention(
    x: Tensor,
    layer: Layer,
    switches: Switches,
    rope: tuple[Tensor, ...] | None,
    query_growth: Tensor | None,
    update: Update | None,
) -> tuple[MixerInputs, Tensor | None]:
    """Return what a layer mixes the tokens by, and the gate of what comes of it, if it has one."""
    outputs = project(
        layer.qkv, update, lambda x: normalize(x, layer.before_attention, layer.dtype), x
    )
    if len(outputs) == 1:
        outputs = outputs[0].split(layer.qkv_sizes, dim=-1)
    if layer.delta is not None:
        qkv, gate, b, a = outputs
        return read_gates(qkv, b, a, layer.delta), gate
    first, gate = outputs[0], None
    if layer.is_gated:
        parts = first.unflatten(-1, (-1, 2, switches.head_size)).unbind(-2)
        first, gate = (part.flatten(-2) for part in parts)
    query = _heads(first, switches.head_size, layer.query_norm)
    key = _heads(outputs[1], switches.head_size, layer.key_norm)
    value = _heads(outputs[2], switches.head_size, None)
    if rope is not None:
        query, key = (rotate(heads, rope, switches.is_interleaved) for heads in (query, key))
    return (query if query_growth is None else query * query_growth, key, value), gate


def after_attention(
    x: Tensor,
    mixed: Tensor,
    gate: Tensor | None,
    layer: Layer,
    switches: Switches,
    updates: Updates,
) -> Tensor:
    """Return the hidden states after a layer whose attention gave `mixed`."""
    if gate is None:
        (output,) = project(layer.o, updates.o, None, mixed)
    else:
        (output,) = project(layer.o, updates.o, partial(_open, layer), mixed, gate)
    output = normalize(_whole(output, layer), layer.after_attention, layer.dtype)
    x = _add(x, output, switches.residual_scale)
    output = _whole(_mlp(x, layer, switches, updates), layer)
    return _add(x, normalize(output, layer.after_mlp, layer.dtype), switches.residual_scale)


def _whole(output: Tensor, layer: Layer) -> Tensor:
    return sum_over_ranks(output) if layer.is_part else output


def _open(layer: Layer, mixed: Tensor, gate: Tensor) -> Tensor:
    """Return what a gate lets through."""
    if layer.delta is not None:
        return gate_heads(mixed, gate, layer.delta)
    return mixed * gate.sigmoid()


def _mlp(x: Tensor, layer: Layer, switches: Switches, updates: Updates) -> Tensor:
    def read(x: Tensor) -> Tensor:
        return normalize(x, layer.before_mlp, layer.dtype)

    mixed = None if layer.experts is None else mix_experts(recomputed(read, x), layer.experts)
    if layer.gate_up is None or layer.down is None:
        assert mixed is not None
        return mixed
    outputs = project(layer.gate_up, updates.gate_up, read, x)
    if len(outputs) == 1:
        inner = layer.down.in_features
        outputs = outputs[0].split((inner, inner) if mixed is None else (inner, inner, 1), dim=-1)
    gate, up, *shares = outputs
    act = ACTIVATIONS[switches.activation]
    (output,) = project(layer.down, updates.down, lambda gate, up: act(gate) * up, gate, up)
    return output if mixed is None else mixed + shares[0].sigmoid() * output


def _add(x: Tensor, output: Tensor, scale: float) -> Tensor:
    """Return x + scale * output."""
    if torch.compiler.is_compiling() and not torch.is_grad_enabled():
        # In float32 the compiler joins it to the norm behind; else to the product, on a copy of x.
        return torch.add(x.float(), output, alpha=scale).to(x.dtype)
    return torch.add(x, output, alpha=scale)


def project(
    projection: Projection,
    update: Update | None,
    prepare: Callable[..., Tensor] | None,
    *inputs: Tensor,
) -> Sequence[Tensor]:
    """Return the outputs of layers that read prepare(*inputs), or the input; neither is kept."""

    def read(*inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        x = prepare(*inputs) if prepare else inputs[0]
        return x, update.low(x) if update else None

    x, low = recomputed(read, *inputs) if prepare or update else (inputs[0], None)
    outputs = projection(x)
    if update and low is not None:
        update.add_(outputs, low)
    return outputs


def _heads(x: Tensor, head_size: int, norm: Norm | None) -> Tensor:
    """Return the heads (tokens, heads, head size) of a product, normed one by one or whole."""
    is_whole = norm is not None and len(norm.weight) != head_size
    if is_whole:
        x = normalize(x, norm, x.dtype)
    heads = x.unflatten(-1, (-1, head_size))
    return heads if is_whole else normalize(heads, norm, x.dtype)


def read_layer(
    number: int,
    number_of_kind: int,
    layer: Any,
    config: Any,
    switches: Switches,
    names: dict[Any, str],
    projection: type[Projection],
    dtype: torch.dtype,
) -> Layer:
    """Return the weights of a layer as transformers loaded it; `names` are those of modules."""
    is_delta, mlp = hasattr(layer, "linear_attn"), layer.mlp
    attention = layer.linear_attn if is_delta else layer.self_attn
    experts, sinks = read_experts(mlp, switches.activation), getattr(attention, "sinks", None)
    dense = getattr(mlp, "shared_expert", None) if experts else mlp
    share = getattr(mlp, "shared_expert_gate", None)

    def norm(module: Any, name: str | None) -> Norm | None:
        part = getattr(module, name, None) if name else None
        return None if part is None else read_norm(part, switches)

    def read(module: Any, *alternatives: tuple[str, ...], more: Any = None) -> Projection:
        parts = next(parts for parts in alternatives if hasattr(module, parts[0]))
        layers = [getattr(module, part) for part in parts] + ([] if more is None else [more])
        return projection([names[layer] for layer in layers], layers)

    delta_names = "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"
    qkv = read(attention, ("q_proj", "k_proj", "v_proj"), ("qkv_proj",), delta_names)
    rows = [config.num_attention_heads, *[config.num_key_value_heads] * 2]
    plain_sizes = tuple(number * switches.head_size for number in rows)
    sizes = qkv.out_features if len(qkv.names) > 1 else plain_sizes
    return Layer(
        number=number,
        number_of_kind=number_of_kind,
        window=switches.windows[number],
        rope=switches.ropes[number],
        before_attention=norm(layer, switches.norms.before_attention),
        after_attention=norm(layer, switches.norms.after_attention),
        before_mlp=norm(layer, switches.norms.before_mlp),
        after_mlp=norm(layer, switches.norms.after_mlp),
        query_norm=norm(attention, "q_norm"),
        key_norm=norm(attention, "k_norm"),
        qkv=qkv,
        o=read(attention, ("o_proj",), ("out_proj",)),
        gate_up=dense and read(dense, ("gate_proj", "up_proj"), ("gate_up_proj",), more=share),
        down=dense and read(dense, ("down_proj",)),
        experts=experts,
        sinks=None if sinks is None else sinks.data,
        delta=read_gated_delta(attention) if is_delta else None,
        is_gated=not is_delta and sizes[0] == 2 * plain_sizes[0],
        qkv_sizes=sizes,
        dtype=dtype,
    )


def read_norm(module: Any, switches: Switches) -> Norm:
    """Return the norm of a module."""
    epsilon = getattr(module, "variance_epsilon", None) or module.eps
    if switches.adds_one_to_norms:
        return Norm(1 + module.weight.data.float(), epsilon)
    return Norm(module.weight.data, epsilon)
