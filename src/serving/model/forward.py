"""The decoder over a cache: what is done from one attention to the next is one function.

So a norm joins the sum before it, and a key goes to its place while it is turned, where that
function is compiled.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from src.model.core.decoder import Decoder
from src.model.core.families.switches import Switches
from src.model.core.layer import Layer, after_attention, before_attention
from src.model.core.lora import Update, Updates
from src.serving.cache.kv_cache import KVCache
from src.serving.lora.stacked import LoraBatch

PassBetween = Callable[..., tuple[Tensor, Tensor]]
Attend = Callable[[Tensor, int, int | None], Tensor]
"""Takes a query (tokens, heads, head size), the number of a layer and its window; returns (tokens,
heads * head size)."""


class Entry(NamedTuple):
    """What a layer needs to know of the tokens that come in, beside their hidden states."""

    rope: tuple[Tensor, ...] | None
    query_growth: Tensor | None
    places: Tensor  # (tokens,) among those of all blocks
    update: Update | None


def enter_attention(
    x: Tensor, layer: Layer, switches: Switches, entry: Entry, cache: Tensor
) -> Tensor:
    """Return the query (tokens, heads, head size); keys and values go to the layer's cache."""
    rope, query_growth, places, update = entry
    query, key, value = before_attention(x, layer, switches, rope, query_growth, update)
    cache.index_copy_(0, places, torch.cat((key, value), dim=1))
    return query


def pass_between(
    x: Tensor,
    mixed: Tensor,
    layer: Layer,
    updates: Updates,
    following: Layer,
    switches: Switches,
    entry: Entry,
    cache: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the hidden states after a layer whose attention gave `mixed`, and the next query."""
    x = after_attention(x, mixed, layer, switches, updates)
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
        places: Tensor,  # (tokens,) among those of all blocks
        attend: Attend,
        lora: LoraBatch | None,
    ) -> Tensor:
        """Return the last hidden states (tokens, hidden size)."""
        decoder, switches, cache = self.decoder, self.decoder.switches, self.cache
        x, where = decoder.embed(ids), decoder.locate(positions)
        first, last = decoder.layers[0], decoder.layers[-1]

        def enter(layer: Layer, updates: Updates) -> Entry:
            return Entry(where.rope(layer), where.query_growth, places, updates.qkv)

        def of_layer(layer: Layer) -> Updates:
            return lora.of_layer(layer) if lora else Updates()

        between = self.pass_adapted_between if lora else self.pass_between
        updates = of_layer(first)
        query = enter_attention(x, first, switches, enter(first, updates), cache.places(0))
        for layer, following in pairwise(decoder.layers):
            mixed, passed = attend(query, layer.number, layer.window), updates
            updates = of_layer(following)
            x, query = between(
                *(x, mixed, layer, passed, following, switches),
                enter(following, updates),
                cache.places(following.number),
            )
        mixed = attend(query, last.number, last.window)
        return after_attention(x, mixed, last, switches, updates)
