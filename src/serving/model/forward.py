"""The decoder over a cache: what is done from one attention to the next is one function.

So a norm joins the sum before it, and a key goes to its place while it is turned, where that
function is compiled. A gated delta layer has its states in place of keys and values.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from src.model.core.blocks.gated_delta import GatedDelta
from src.model.core.decoder import Decoder
from src.model.core.families.switches import Switches
from src.model.core.layer import Layer, after_attention, before_attention
from src.model.core.lora import Update, Updates
from src.serving.cache.kv_cache import KVCache
from src.serving.lora.stacked import LoraBatch

Entered = tuple[tuple[Tensor, ...], Tensor | None]
"""The query (tokens, heads, head size) of a layer, or all `MixerInputs` of a gated delta; and the
gate of what comes of it."""
PassBetween = Callable[..., tuple[Tensor, Entered]]
Attend = Callable[[Tensor, int, int | None], Tensor]
"""Takes a query (tokens, heads, head size), the number of a layer in the cache and its window;
returns (tokens, heads * head size)."""
MixStates = Callable[[GatedDelta, int, tuple[Tensor, ...]], Tensor]
"""Takes the weights of a gated delta, its number among the states, and its `MixerInputs`."""


class Entry(NamedTuple):
    """What a layer needs to know of the tokens that come in, beside their hidden states."""

    rope: tuple[Tensor, ...] | None
    query_growth: Tensor | None
    places: Tensor  # (tokens,) among those of all pages
    update: Update | None


def enter_attention(
    x: Tensor, layer: Layer, switches: Switches, entry: Entry, cache: Tensor | None
) -> Entered:
    """Return what the layer mixes tokens by; keys and values go to its cache, if it has one."""
    rope, query_growth, places, update = entry
    inputs, gate = before_attention(x, layer, switches, rope, query_growth, update)
    if cache is None:
        return inputs, gate
    query, key, value = inputs
    cache.index_copy_(0, places, torch.cat((key, value), dim=1))
    return (query,), gate


def pass_between(
    x: Tensor,
    mixed: Tensor,
    gate: Tensor | None,
    layer: Layer,
    updates: Updates,
    following: Layer,
    switches: Switches,
    entry: Entry,
    cache: Tensor | None,
) -> tuple[Tensor, Entered]:
    """Return the hidden states after a layer whose attention gave `mixed`, and enter the next."""
    x = after_attention(x, mixed, gate, layer, switches, updates)
    return x, enter_attention(x, following, switches, entry, cache)


class CachedDecoder:
    """The layers of a decoder, whose keys and values go to a cache."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self.decoder, self.cache = decoder, cache
        self.pass_between: PassBetween = pass_between
        self.pass_adapted_between: PassBetween = pass_between
        """Which may be compiled."""

    def hidden(
        self,
        ids: Tensor,  # (tokens,)
        positions: Tensor,  # (tokens,)
        places: Tensor,  # (tables, tokens) among those of all pages
        attend: Attend,
        mix_states: MixStates | None,
        lora: LoraBatch | None,
        text_lengths: Tensor | None = None,
    ) -> Tensor:
        """Return the last hidden states (tokens, hidden size).

        `text_lengths` are what `Decoder.locate` takes.
        """
        decoder, switches = self.decoder, self.decoder.switches
        x, where = decoder.embed(ids), decoder.locate(positions, text_lengths)
        first, last = decoder.layers[0], decoder.layers[-1]
        places_by = places.unbind(0)

        def enter(layer: Layer, updates: Updates) -> Entry:
            # A layer without a cache goes by none of them.
            own = places_by[0 if layer.delta else self.cache.table(layer.number_of_kind)]
            return Entry(where.rope(layer.rope), where.query_growth, own, updates.qkv)

        def of_layer(layer: Layer) -> Updates:
            return lora.of_layer(layer) if lora else Updates()

        def mix(layer: Layer, inputs: tuple[Tensor, ...]) -> Tensor:
            if layer.delta is None:
                return attend(inputs[0], layer.number_of_kind, layer.window)
            assert mix_states is not None
            return mix_states(layer.delta, layer.number_of_kind, inputs)

        between = self.pass_adapted_between if lora else self.pass_between
        updates = of_layer(first)
        entered = enter_attention(x, first, switches, enter(first, updates), self.places(first))
        for layer, following in pairwise(decoder.layers):
            inputs, gate = entered
            mixed, passed = mix(layer, inputs), updates
            updates = of_layer(following)
            x, entered = between(
                *(x, mixed, gate, layer, passed, following, switches),
                enter(following, updates),
                self.places(following),
            )
        inputs, gate = entered
        return after_attention(x, mix(last, inputs), gate, last, switches, updates)

    def places(self, layer: Layer) -> Tensor | None:
        """Return the cache of a layer by places; None where it has states in place of one."""
        return self.cache.places(layer.number_of_kind) if layer.delta is None else None
