"""What each slot holds of the key/value cache: blocks that are known, taken, learned, released."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from src.serving.cache.block_pool import BlockPool
from src.serving.cache.kv_cache import (
    BLOCK_SIZE,
    FIRST_PAGE,
    NO_BLOCK,
    Block,
    KVCache,
    LayerGroup,
    num_blocks_of,
)
from src.serving.cache.prefix_index import Match, Node, PrefixIndex


@dataclass
class _Chain:
    """What is known of the tokens of a slot."""

    node: Node | None = None
    """The end of the chain of its whole blocks; None where nothing can follow it any more."""
    num_whole: int = 0
    """Blocks of a group up to there."""
    rest: list[int] = field(default_factory=list)
    """Tokens after them."""
    num_tokens: int = 0
    """Of the prompt, with the one after it, for which there will be room; 0 of no prompt."""


class BlockTables:
    """Gives slots the blocks they need; nobody else knows which tokens lie where."""

    def __init__(self, cache: KVCache, *, most_read: int = 0, shares_prefixes: bool = True) -> None:
        """`most_read` is how many tokens of a prompt are read at once, at most.

        Where a prompt needs more than keys and values of what was read before, no prefix is shared.
        """
        self.tensors, self._groups = cache, cache.groups
        self._most_read, self._shares_prefixes = most_read, shares_prefixes
        self._index = PrefixIndex(cache.groups)
        self._pool = BlockPool(range(FIRST_PAGE, FIRST_PAGE + cache.num_pages), self._index)
        self._chains = [_Chain() for _ in cache.held[0]]

    @property
    def num_available(self) -> int:
        """How many pages no slot needs."""
        return self._pool.num_available

    def has_room(self, key: Hashable, ids: list[int]) -> bool:
        """Whether a prompt can be read, with a token more for each of the slots in use."""
        others = [slot for slot, chain in enumerate(self._chains) if chain.num_tokens]
        if not others:
            return True
        match = self._match(key, ids)
        num_needed = sum(
            self._num_missing(group, len(ids) + 1, blocks)
            for group, blocks in zip(self._groups, match.blocks, strict=True)
        )
        num_woken = sum(
            len(block)
            for blocks in match.blocks
            for block in blocks
            if not self._pool.num_users(block)
        )
        num_needed += num_woken + sum(map(self._num_promised, others))
        return num_needed <= self._pool.num_available

    def place(self, slot: int, key: Hashable, ids: list[int]) -> int:
        """Give a slot what is known of a prompt; return of how many tokens.

        The last token is always read, because its scores are wanted.
        """
        match = self._match(key, ids)
        num_known = match.num_whole * BLOCK_SIZE
        for group, blocks in enumerate(match.blocks):
            for block in filter(None, blocks):
                self._pool.share(block)
            if blocks:
                self.tensors.give(group, slot, blocks, num_known)
        chain = self._chains[slot] = _Chain(match.node, match.num_whole)
        chain.num_tokens = len(ids) + 1
        if match.part is not None:
            sources, num_tokens = match.part
            for source in sources:
                self._pool.share(source)  # it is not taken for its own copy
            if self.grow(slot, num_known + num_tokens):
                for source, held in zip(sources, self._held(slot), strict=True):
                    self.tensors.copy(source, held[-1], num_tokens)
                chain.rest = list(ids[num_known : num_known + num_tokens])
                num_known += num_tokens
            for source in sources:
                self._pool.release(source)
        return num_known

    def grow(self, slot: int, num_tokens: int, start: int | None = None) -> bool:
        """Give a slot room for so many tokens in all; False where all pages are in use.

        Tokens from `start` on are read next: what none of them sees is given back first.
        """
        num_missing = num_blocks_of(num_tokens) - self._num_blocks(slot)
        if num_missing <= 0:
            return True
        if start is not None:
            self._give_back(slot, start)
        if num_missing * len(self.tensors.tables) > self._pool.num_available:
            return False
        for number, group in enumerate(self._groups):
            blocks = [self._pool.take(group.num_pages) for _ in range(num_missing)]
            self.tensors.give(number, slot, blocks, num_tokens)
        return True

    def learn(self, slot: int, ids: list[int]) -> None:
        """Say that the slot holds these tokens after those that it is known to hold."""
        chain, held = self._chains[slot], self._held(slot)
        if chain.node is None:
            return
        chain.rest += ids
        while chain.rest:
            own = tuple(chain.rest[:BLOCK_SIZE])
            blocks = [blocks[chain.num_whole] for blocks in held]
            if not any(blocks):
                chain.node = None  # what follows cannot be found
                return
            node = self._index.add(blocks, chain.node, own)
            if len(own) < BLOCK_SIZE:
                return
            chain.node = node
            chain.num_whole += 1
            del chain.rest[:BLOCK_SIZE]

    def release(self, slot: int, *, is_valid: bool) -> None:
        """Take all from a slot; it can be found again, if it is valid."""
        for held in self._held(slot):
            # The first ones last: what follows a block is of no use without it.
            for block in filter(None, reversed(held)):
                if not is_valid and self._pool.num_users(block) == 1:
                    self._index.forget(block)
                self._pool.release(block)
        self.tensors.clear(slot)
        self._chains[slot] = _Chain()

    def _num_blocks(self, slot: int) -> int:
        """Return how many blocks of each group a slot was given, with those it gave back."""
        return len(self.tensors.held[0][slot])

    def _held(self, slot: int) -> list[list[Block]]:
        """Return the blocks of a slot, of each group."""
        return [held[slot] for held in self.tensors.held]

    def _match(self, key: Hashable, ids: list[int]) -> Match:
        if not self._shares_prefixes:
            return Match([[] for _ in self._groups], None, None)
        return self._index.match(key, ids[:-1])

    def _num_promised(self, slot: int) -> int:
        """Return how many pages a slot will take yet for its prompt, or for a token more."""
        return sum(
            max(group.num_pages, self._num_missing(group, self._chains[slot].num_tokens, held))
            for group, held in zip(self._groups, self._held(slot), strict=True)
        )

    def _num_missing(self, group: LayerGroup, num_tokens: int, held: list[Block]) -> int:
        """Return how many pages more of a group those need who hold some for so many tokens."""
        num_missing = num_blocks_of(num_tokens) - len(held)
        if num_missing > 0 and group.window is not None:
            num_seen = len(held) - held.count(NO_BLOCK)
            most = group.most_blocks(num_tokens, self._most_read)
            num_missing = min(num_missing, most - num_seen)
        return group.num_pages * max(0, num_missing)

    def _give_back(self, slot: int, position: int) -> None:
        """Release the blocks of a slot that no token from a position on sees."""
        for number, (group, held) in enumerate(zip(self._groups, self._held(slot), strict=True)):
            stop = min(group.first_seen(position), len(held))
            start = stop
            while start > 0 and held[start - 1]:
                start -= 1
            if start == stop:
                continue
            for block in reversed(held[start:stop]):
                self._pool.release(block)
            self.tensors.drop(number, slot, range(start, stop))
