"""The weights of a layer, read from the modules of a model that transformers loaded."""

from dataclasses import dataclass
from typing import Any

import torch

from src.model.core.families.switches import Switches
from src.model.core.layers import Norm, Projection


@dataclass(frozen=True)
class Layer:
    """The weights of a layer."""

    number: int
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
    o: Projection
    gate_up: Projection
    down: Projection
    qkv_sizes: tuple[int, ...]
    dtype: torch.dtype
    """Of what the products read."""

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Return them in the order of `Updates`."""
        return self.qkv, self.o, self.gate_up, self.down


def read_layer(
    number: int,
    layer: Any,
    config: Any,
    switches: Switches,
    names: dict[Any, str],
    projection: type[Projection],
    dtype: torch.dtype,
) -> Layer:
    """Return the weights of a layer as transformers loaded it; `names` are those of modules."""
    attention = layer.self_attn

    def norm(module: Any, name: str | None) -> Norm | None:
        return read_norm(getattr(module, name or "", None), switches)

    def read(module: Any, *alternatives: tuple[str, ...]) -> Projection:
        parts = next(parts for parts in alternatives if hasattr(module, parts[0]))
        layers = [getattr(module, part) for part in parts]
        return projection([names[layer] for layer in layers], layers)

    rows = [config.num_attention_heads, *[config.num_key_value_heads] * 2]
    return Layer(
        number=number,
        window=switches.windows[number],
        rope=switches.ropes[number],
        before_attention=norm(layer, switches.norms.before_attention),
        after_attention=norm(layer, switches.norms.after_attention),
        before_mlp=norm(layer, switches.norms.before_mlp),
        after_mlp=norm(layer, switches.norms.after_mlp),
        query_norm=norm(attention, "q_norm"),
        key_norm=norm(attention, "k_norm"),
        qkv=read(attention, ("q_proj", "k_proj", "v_proj"), ("qkv_proj",)),
        o=read(attention, ("o_proj",)),
        gate_up=read(layer.mlp, ("gate_proj", "up_proj"), ("gate_up_proj",)),
        down=read(layer.mlp, ("down_proj",)),
        qkv_sizes=tuple(number * switches.head_size for number in rows),
        dtype=dtype,
    )


def read_norm(module: Any, switches: Switches) -> Norm | None:
    """Return the norm of a module, where there is one."""
    if module is None:
        return None
    epsilon = getattr(module, "variance_epsilon", None) or module.eps
    if switches.adds_one_to_norms:
        return Norm(1 + module.weight.data.float(), epsilon)
    return Norm(module.weight.data, epsilon)
