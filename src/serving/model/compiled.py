"""The function between two attentions compiled by torch.compile, where that works."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor

from src.model.core.compiled import find_fault
from src.model.core.layers import Projection
from src.model.core.lora import Update, Updates
from src.model.core.proof import are_close
from src.serving.lora.rows import MAX_PAGES, RowsUpdate
from src.serving.lora.stacked import PagesUpdate, StackedLora
from src.serving.model.forward import CachedDecoder, Entry, PassBetween, pass_between

Options = dict[str, Any] | None
NUM_TOKENS = 3
"""Of the passes that stand for those of several tokens."""
RECOMPILE_LIMIT = 64
"""Variants that torch.compile makes before it gives up; kinds of layers have some each."""


def compile_between(
    layers: CachedDecoder, *, with_adapters: bool, backend: str | Callable = "inductor"
) -> str | None:
    """Have a decoder run compiled between attentions; return why not, where it fails or differs.

    One token, several, and each with adapters are variants of their own, which are made here: no
    request waits for the compiler. All layers share them.
    """
    torch._dynamo.config.recompile_limit = max(
        torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT
    )
    # On a GPU loops over different sizes share a launch, where the compiler can do that.
    on_gpu = layers.decoder.device.type == "cuda"
    attempts: list[Options] = [{"combo_kernels": True}, None] if on_gpu else [None]
    reason = None
    for options in attempts:
        compiled = compile_with(backend, options)
        reason = find_fault(partial(_is_right, layers, compiled, with_adapters))
        if reason is None:
            layers.pass_between = compiled
            if with_adapters:
                layers.pass_adapted_between = compiled
            return None
    return reason


def _is_right(layers: CachedDecoder, compiled: PassBetween, with_adapters: bool) -> bool:
    dtype = layers.decoder.dtype  # whatever the sum of the layers has
    return all(
        are_close(_run(compiled, inputs), _run(pass_between, inputs), dtype)
        for inputs in _trials(layers, with_adapters)
    )


def compile_with(backend: str | Callable = "inductor", options: Options = None) -> PassBetween:
    """Return `pass_between` compiled once for one token, and once for any other number."""
    compiled = torch.compile(pass_between, backend=backend, options=options)

    def call(*inputs: Any) -> Any:
        x, *_, entry, _ = inputs
        # A prompt that was known but one token, or prompts of several adapters.
        update = entry.update
        if isinstance(update, PagesUpdate) and (len(x) == 1 or update.is_other is not None):
            return pass_between(*inputs)
        for tensor in _tensors(inputs):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return compiled(*inputs)

    return call


def _tensors(inputs: tuple[Any, ...]) -> Iterator[Tensor]:
    for value in inputs:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)


def _run(function: Callable[..., Any], inputs: tuple[Any, ...]) -> list[Tensor]:
    """Return the hidden states, what the next layer mixes by, and what went to the cache."""
    x, (mixer_inputs, gate) = function(*inputs)
    *_, entry, cache = inputs
    written = None if cache is None else cache[entry.places]
    return [part for part in (x, *mixer_inputs, gate, written) if part is not None]


def _trials(layers: CachedDecoder, with_adapters: bool) -> Iterator[tuple[Any, ...]]:
    """Yield inputs of `pass_between` for each pair of layers and each kind of pass."""
    decoder = layers.decoder
    device, dtype, switches = decoder.device, decoder.dtype, decoder.switches
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def stack(projection: Projection) -> StackedLora:
        drawn = StackedLora(projection, num_pages=2, like=decoder.like)
        drawn.a.copy_(draw(*drawn.a.shape) / projection.in_features)
        drawn.b.copy_(draw(*drawn.b.shape))
        return drawn

    def in_rows(projection: Projection) -> Update:
        drawn = stack(projection)
        return RowsUpdate(drawn.a, drawn.b, drawn.ends, table)

    def in_pages(projection: Projection) -> Update:
        return PagesUpdate(*stack(projection).read(slice(2)), None)

    pages = torch.full((NUM_TOKENS, MAX_PAGES), -1, dtype=torch.int32)
    pages[0, 0], pages[2, :2] = 1, torch.tensor([0, 1])
    decoder.grow(NUM_TOKENS)
    kinds = (None, in_rows, in_pages) if with_adapters else (None,)
    trials = product(pairwise(decoder.layers), (1, NUM_TOKENS), kinds)
    for (layer, following), num_tokens, adapted in trials:
        table, positions = pages[:num_tokens].to(device), torch.arange(num_tokens, device=device)
        where = decoder.locate(positions)
        mixed = draw(num_tokens, layer.o.in_features).to(dtype)
        has_gate = layer.is_gated or layer.delta is not None
        gate = draw(num_tokens, layer.o.in_features).to(dtype) if has_gate else None
        x = draw(num_tokens, decoder.hidden_size).to(decoder.sum_dtype)
        parts = following.qkv, *layer.projections[1:]
        updates = Updates(*map(adapted, parts)) if adapted else Updates()
        entry = Entry(where.rope(following.rope), where.query_growth, positions, updates.qkv)
        cache = layers.places(following)
        yield x, mixed, gate, layer, updates, following, switches, entry, cache
        if cache is not None:
            cache[:num_tokens] = 0
