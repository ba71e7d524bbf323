"""The sizes of a base model, read from its modules before any weight is there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from src.model.core.decoder import open_decoder
from src.model.core.families.table import switches_of
from src.model.core.layer import Layer
from src.model.core.layers import Projection
from src.model.shape import DeltaShape, ModelShape, Sizes


def read_shape(folder: Path) -> ModelShape | None:
    """Return a base model's sizes by its config.json; None where our decoder does not run it."""
    return shape_of(AutoConfig.from_pretrained(folder, local_files_only=True))


def shape_of(config: Any) -> ModelShape | None:
    """Return the sizes of the model of a configuration; None where our decoder does not run it."""
    if isinstance(switches_of(config.get_text_config()), str):
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    decoder = open_decoder(model)
    assert not isinstance(decoder, str)
    layers, switches = decoder.layers, decoder.switches
    attending = [layer for layer in layers if layer.delta is None]
    layer = next((layer for layer in attending if layer.experts is not None), attending[0])
    recurrent = next((layer for layer in layers if layer.delta is not None), None)
    experts, down, gate_up = layer.experts, layer.down, layer.gate_up
    inner = experts.down.shape[1] if experts else down.in_features if down else 0
    hidden_size, rows = layer.o.out_features[0], (decoder.num_heads, decoder.num_key_value_heads)
    after = [norm for norm in (layer.after_attention, layer.after_mlp) if norm is not None]
    shape = ModelShape(
        hidden_size=hidden_size,
        intermediate_size=inner,
        num_layers=len(layers),
        num_heads=rows[0],
        num_key_value_heads=rows[1],
        head_size=switches.head_size,
        vocab_size=decoder.head.out_features[0],
        is_tied=decoder.head.modules[0].weight is decoder.like,
        qkv_names=_names(layer.qkv),
        gate_up_names=_names(gate_up) if gate_up else (),
        num_experts=len(experts.router) if experts else 0,
        shared_size=down.in_features if experts and down else 0,
        num_chosen=experts.num_chosen if experts else 0,
        num_normed=hidden_size * len(after)
        + (0 if layer.query_norm is None else sum(rows) * switches.head_size),
        norms_in_float32=switches.adds_one_to_norms,
        windows=switches.windows,
        has_score_cap=switches.score_cap is not None,
        has_sinks=layer.sinks is not None,
        has_logit_cap=switches.logit_cap is not None,
        is_gated=layer.is_gated,
        delta=recurrent and _delta_shape(recurrent, len(decoder.deltas)),
    )
    num_known = shape.linear_parameters + shape.other_parameters
    num_more = sum(parameter.numel() for parameter in model.parameters()) - num_known
    return replace(shape, num_more=num_more)


def _delta_shape(layer: Layer, num_layers: int) -> DeltaShape:
    assert layer.delta is not None
    sizes = layer.delta.num_heads, layer.delta.key_size, layer.delta.value_size
    return DeltaShape(num_layers, _sizes(layer.qkv), _sizes(layer.o), *sizes)


def _sizes(projection: Projection) -> Sizes:
    outs = zip(_names(projection), projection.out_features, strict=True)
    return {name: (out, projection.in_features) for name, out in outs}


def _names(projection: Projection) -> tuple[str, ...]:
    return tuple(name.rpartition(".")[2] for name in projection.names)
