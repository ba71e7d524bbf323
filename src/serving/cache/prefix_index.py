"""Which blocks hold which tokens: a chain from a key to the last token that is known.

A block is known by its own tokens and by the block before it, so that a match of its tokens is a
match of all tokens up to it. Tokens under another key, such as another adapter, are never a match.
"""

import itertools
from collections.abc import Hashable, Sequence
from typing import NamedTuple

SHORTEST = 8
"""Fewer tokens than this are read again."""
MOST_COMPARED = 64
"""Blocks that are compared token by token, those that became known last."""

Node = Hashable
"""The end of a chain: its key, or its last block as it was known."""


class Match(NamedTuple):
    """The beginning of a prompt that is known."""

    blocks: list[int]
    """Those that hold nothing else."""
    part: tuple[int, int] | None
    """A block of which only the first so many tokens are the prompt's."""
    node: Node
    """The end of the chain of whole blocks."""


class _Known(NamedTuple):
    block: int
    parent: Node
    ids: tuple[int, ...]
    node: Node


class PrefixIndex:
    """Finds the known beginning of a prompt, exactly to the token."""

    def __init__(self, block_size: int) -> None:
        self._size = block_size
        self._children: dict[Node, dict[tuple[int, ...], _Known]] = {}
        self._of_block: dict[int, _Known] = {}
        self._nodes = itertools.count()

    def __contains__(self, block: int) -> bool:
        """Whether a block is known."""
        return block in self._of_block

    def match(self, key: Hashable, ids: Sequence[int]) -> Match:
        """Return what is known of these tokens under a key."""
        node, blocks = root(key), []
        while len(own := self._block_of(ids, len(blocks))) == self._size:
            known = self._children.get(node, {}).get(own)
            if known is None:
                break
            blocks.append(known.block)
            node = known.node
        newest = reversed(self._children.get(node, {}).values())
        part = max(
            (
                (_common(known.ids, own), known.block)
                for known in itertools.islice(newest, MOST_COMPARED)
            ),
            default=(0, 0),
        )
        if len(blocks) * self._size + part[0] < SHORTEST:
            return Match([], None, root(key))
        return Match(blocks, (part[1], part[0]) if part[0] else None, node)

    def _block_of(self, ids: Sequence[int], number: int) -> tuple[int, ...]:
        return tuple(ids[number * self._size : (number + 1) * self._size])

    def add(self, block: int, parent: Node, ids: tuple[int, ...]) -> Node:
        """Say that a block holds these tokens after a chain; return the end of the longer chain.

        Where another block is known to hold them already, this one stays as it was.
        """
        siblings = self._children.setdefault(parent, {})
        if (twin := siblings.get(ids)) is not None:
            return twin.node
        self.forget(block)
        siblings = self._children.setdefault(parent, {})
        known = _Known(block, parent, ids, next(self._nodes))
        siblings[ids] = self._of_block[block] = known
        return known.node

    def forget(self, block: int) -> None:
        """Let a block be taken for something else; what follows it is never found again."""
        known = self._of_block.pop(block, None)
        if known is None:
            return
        siblings = self._children[known.parent]
        del siblings[known.ids]
        if not siblings:
            del self._children[known.parent]


def root(key: Hashable) -> Node:
    """Return the beginning of a key's chains."""
    return "key", key


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many first tokens two sequences share."""
    pairs = zip(one, other, strict=False)
    shortest = min(len(one), len(other))
    return next((number for number, (a, b) in enumerate(pairs) if a != b), shortest)
