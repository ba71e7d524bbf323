"""Which blocks hold which tokens: a chain from a key to the last token that is known.

A link of it is known by its own tokens and by the link before it, so that a match of its tokens is
a match of all tokens up to it. It has a block of each group of layers, or of some of them. Tokens
under another key, such as another adapter, are never a match.
"""

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from src.serving.cache.kv_cache import BLOCK_SIZE, NO_BLOCK, Block, LayerGroup

SHORTEST = 8
"""Fewer tokens than this are read again."""
MOST_COMPARED = 64
"""Blocks that are compared token by token, those that became known last."""

Node = Hashable
"""The end of a chain: its key, or its last link as it was known."""


@dataclass(eq=False)
class _Link:
    """Up to BLOCK_SIZE tokens after those of a chain."""

    blocks: list[Block]
    """Of each group; NO_BLOCK where it was taken for something else."""
    parent: Node
    ids: tuple[int, ...]
    node: Node


class Match(NamedTuple):
    """The beginning of a prompt that is known."""

    blocks: list[list[Block]]
    """Those of each group that hold nothing else; NO_BLOCK before what is seen of them."""
    part: tuple[list[Block], int] | None
    """A block of each group of which only the first so many tokens are the prompt's."""
    node: Node
    """The end of the chain of whole blocks."""
    num_whole: int = 0
    """How many there are."""


class PrefixIndex:
    """Finds the known beginning of a prompt, exactly to the token."""

    def __init__(self, groups: Sequence[LayerGroup]) -> None:
        self._groups = groups
        self._children: dict[Node, dict[tuple[int, ...], _Link]] = {}
        self._of_block: dict[Block, _Link] = {}
        self._nodes = itertools.count()

    def __contains__(self, block: Block) -> bool:
        """Whether a block is known."""
        return block in self._of_block

    def match(self, key: Hashable, ids: Sequence[int]) -> Match:
        """Return what all groups know of these tokens under a key.

        Of a group with a window they are the last ones, which the next token sees.
        """
        links = self._whole_links(key, ids)
        node = links[-1].node if links else root(key)
        own = _block_of(ids, len(links))
        newest = itertools.islice(reversed(self._children.get(node, {}).values()), MOST_COMPARED)
        common = [(_common(link.ids, own), link) for link in newest if all(link.blocks)]
        num_common, partial = max(common, key=lambda pair: pair[0], default=(0, None))
        num_whole = len(links) * BLOCK_SIZE
        if num_whole + num_common < SHORTEST:
            return Match([[] for _ in self._groups], None, root(key))
        blocks: list[list[Block]] = []
        for number, group in enumerate(self._groups):
            first = min(group.first_seen(num_whole), len(links))
            seen = [link.blocks[number] for link in links[first:]]
            blocks.append([*[NO_BLOCK] * first, *seen])
        part = (list(partial.blocks), num_common) if partial and num_common else None
        return Match(blocks, part, node, len(links))

    def _whole_links(self, key: Hashable, ids: Sequence[int]) -> list[_Link]:
        """Return the longest chain of whole blocks that all groups know as far as they see it."""
        node, links, longest = root(key), list[_Link](), 0
        runs = [0] * len(self._groups)  # of blocks that a group knows, up to here
        while len(own := _block_of(ids, len(links))) == BLOCK_SIZE:
            link = self._children.get(node, {}).get(own)
            if link is None:
                break
            links.append(link)
            node = link.node
            runs = [run + 1 if block else 0 for run, block in zip(runs, link.blocks, strict=True)]
            if all(map(self._is_seen, self._groups, runs, itertools.repeat(len(links)))):
                longest = len(links)
        return links[:longest]

    def _is_seen(self, group: LayerGroup, run: int, num_whole: int) -> bool:
        return run >= num_whole - group.first_seen(num_whole * BLOCK_SIZE)

    def add(self, blocks: Sequence[Block], parent: Node, ids: tuple[int, ...]) -> Node:
        """Say that blocks hold these tokens after a chain; return the end of the longer chain.

        At least one group has a block. Where another one is known to hold them already, it stays
        as it was.
        """
        siblings = self._children.setdefault(parent, {})
        link = siblings.get(ids)
        if link is None:
            nothing = [NO_BLOCK] * len(blocks)
            link = siblings[ids] = _Link(nothing, parent, ids, next(self._nodes))
        for group, block in enumerate(blocks):
            if block and not link.blocks[group]:
                self.forget(block)
                link.blocks[group] = block
                self._of_block[block] = link
        return link.node

    def forget(self, block: Block) -> None:
        """Let a block be taken for something else.

        What follows a link that has no block any more is never found again.
        """
        link = self._of_block.pop(block, None)
        if link is None:
            return
        link.blocks[link.blocks.index(block)] = NO_BLOCK
        if any(link.blocks):
            return
        siblings = self._children[link.parent]
        del siblings[link.ids]
        if not siblings:
            del self._children[link.parent]


def root(key: Hashable) -> Node:
    """Return the beginning of a key's chains."""
    return "key", key


def _block_of(ids: Sequence[int], number: int) -> tuple[int, ...]:
    return tuple(ids[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE])


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many first tokens two sequences share."""
    pairs = zip(one, other, strict=False)
    shortest = min(len(one), len(other))
    return next((number for number, (a, b) in enumerate(pairs) if a != b), shortest)
