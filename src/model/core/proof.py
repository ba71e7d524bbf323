"""Does our decoder compute what transformers computes? Tried at load, as configurations differ."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers.utils import logging

from src.model.core.attention import Spans
from src.model.core.decoder import Decoder
from src.model.core.families.table import switches_of
from src.model.core.layers import Projection

D = TypeVar("D", bound=Decoder)
LENGTH = 8
"""Tokens that are tried."""
MAX_ID = 1000
SHARE = 0.75
"""Of the tokens whose states are right, where rounding may choose an expert."""


def open_proven(model: Any, kind: type[D], projection: type[Projection] = Projection) -> D | str:
    """Return our decoder over a model's weights, or why the model must run in transformers."""
    switches = switches_of(model.config.get_text_config())
    if isinstance(switches, str):
        return switches
    decoder = kind(model, switches, projection)
    return find_difference(model, decoder) or decoder


@torch.no_grad()
def find_difference(model: Any, decoder: Decoder) -> str | None:
    """Return why a model must run in transformers, where a layer of the decoder differs from its.

    Each layer reads what transformers' layer before gave, so that rounding does not add up.
    """
    was_training = model.training
    try:
        states, scores = _run_in_transformers(model.eval(), draw_ids(model, decoder.device))
    finally:
        model.train(was_training)
    spans = Spans.between((0, LENGTH), decoder.device)
    layers = decoder.run_alone(states[:-1], spans, decoder.updates(LENGTH))
    tolerance = tolerance_of(decoder.dtype)
    # In 16 bits a router may take the other of two experts whose scores are nearly the same.
    share = SHARE if decoder.has_experts and decoder.dtype.itemsize < 4 else 1.0
    pairs = [*zip(layers, states[1:], strict=True), (decoder.scores(states[-1]), scores)]
    for ours, theirs in pairs:
        # Token by token: the first one's states may be a hundred times as large as those of others.
        off, size = (x.float().norm(dim=-1) for x in (ours - theirs, theirs))
        is_right = off <= tolerance * size  # neither is a NaN
        if is_right.float().mean() < share:
            return f"this {model.config.model_type} differs from those that ours knows"
    return None


def tolerance_of(dtype: torch.dtype) -> float:
    """Return the relative difference, by the norm, of two right ways to compute a layer."""
    return 1e-4 if dtype.itemsize >= 4 else 0.03


def are_close(found: Iterable[Tensor], expected: Iterable[Tensor], dtype: torch.dtype) -> bool:
    """Return whether two ways to compute in a dtype agree by the norm, which a NaN does not."""
    tolerance = tolerance_of(dtype)
    return all(
        (one - other).float().norm() <= tolerance * other.float().norm()
        for one, other in zip(found, expected, strict=True)
    )


def draw_ids(model: Any, device: torch.device) -> Tensor:
    """Return the tokens that are tried (1, LENGTH), the same each time."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().num_embeddings
    return torch.randint(min(MAX_ID, vocabulary), (1, LENGTH), generator=generator).to(device)


def _run_in_transformers(model: Any, ids: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the states (tokens, hidden size) around all layers, and the scores."""
    states: list[Tensor] = []

    def keep(module: Any, inputs: Any, options: Any, output: Any) -> None:
        if not states:
            states.append((inputs or tuple(options.values()))[0][0])
        states.append((output[0] if isinstance(output, tuple) else output)[0])

    with ExitStack() as hooks:
        # It warns of kernels that it lacks, and ours does not need.
        hooks.callback(logging.set_verbosity, logging.get_verbosity())
        logging.set_verbosity_error()
        for layer in model.get_decoder().layers:
            handle = layer.register_forward_hook(keep, with_kwargs=True)
            hooks.callback(handle.remove)
        scores = model(ids, use_cache=False).logits[0]
    return states, scores
