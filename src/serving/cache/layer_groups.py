"""Which layers share a block of the key/value cache: those that see equally many tokens back.

What lies before a window is given back, so that layers without one take its memory. All blocks are
made of pages of one size for that (as in vLLM's hybrid KV cache manager).
"""

from collections import Counter
from collections.abc import Sequence

from src.serving.cache.kv_cache import LayerGroup, LayerGroups

MOST_EMPTY = 1 / 16
"""Of the room for layers in the pages of all groups."""


def group_layers(windows: Sequence[int | None]) -> LayerGroups:
    """Return the groups of layers with these windows, in pages as large as can well be filled."""
    counts = Counter(windows)
    # Pages of one layer are always full.
    layers_of_page = next(
        size
        for size in range(min(counts.values()), 0, -1)
        if sum(-count % size for count in counts.values()) <= MOST_EMPTY * len(windows)
    )
    groups: list[LayerGroup] = []
    first = 0
    for window, count in counts.items():
        stop = first - (-count // layers_of_page)
        groups.append(LayerGroup(window, slice(first, stop)))
        first = stop
    seen: Counter[int | None] = Counter()
    first_table = {group.window: group.tables.start for group in groups}
    places: list[tuple[int, int]] = []
    for window in windows:
        table, number = divmod(seen[window], layers_of_page)
        places.append((first_table[window] + table, number))
        seen[window] += 1
    return LayerGroups(tuple(groups), layers_of_page, tuple(places))
