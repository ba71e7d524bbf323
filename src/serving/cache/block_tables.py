"""What each slot holds of the key/value cache: blocks that are known, taken, learned, released."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from src.serving.cache.block_pool import BlockPool
from src.serving.cache.kv_cache import BLOCK_SIZE, EMPTY, FIRST_BLOCK, KVCache, num_blocks_of
from src.serving.cache.prefix_index import Match, Node, PrefixIndex


@dataclass
class _Chain:
    """What is known of the tokens of a slot."""

    node: Node | None = None
    """The end of the chain of its whole blocks; None where nothing can follow it any more."""
    num_whole: int = 0
    """Blocks up to there."""
    rest: list[int] = field(default_factory=list)
    """Tokens after them."""
    num_promised: int = 0
    """Blocks that the prompt will need in all."""


class BlockTables:
    """Gives slots the blocks they need; nobody else knows which tokens lie where."""

    def __init__(self, cache: KVCache, *, window: int | None, shares_prefixes: bool = True) -> None:
        """`window` is how many of the last tokens any layer sees, None for all of them.

        Where a prompt needs more than keys and values of what was read before, no prefix is shared.
        """
        self.tensors, self._window, self._shares_prefixes = cache, window, shares_prefixes
        self._index = PrefixIndex(BLOCK_SIZE)
        blocks = range(FIRST_BLOCK, FIRST_BLOCK + cache.num_blocks)
        self._pool = BlockPool(blocks, self._index)
        self._chains = [_Chain() for _ in cache.held]

    @property
    def num_available(self) -> int:
        """How many blocks no slot needs."""
        return self._pool.num_available

    def has_room(self, key: Hashable, ids: list[int]) -> bool:
        """Whether a prompt can be read, with a token more for each of the slots in use."""
        match = self._match(key, ids)
        num_new = num_blocks_of(len(ids) + 1) - len(match.blocks)
        num_woken = sum(not self._pool.num_users(block) for block in match.blocks)
        others = [
            max(1, chain.num_promised - len(held))
            for chain, held in zip(self._chains, self.tensors.held, strict=True)
            if chain.num_promised
        ]
        return not others or num_new + num_woken + sum(others) <= self._pool.num_available

    def place(self, slot: int, key: Hashable, ids: list[int]) -> int:
        """Give a slot what is known of a prompt; return of how many tokens.

        The last token is always read, because its scores are wanted.
        """
        match = self._match(key, ids)
        for block in match.blocks:
            self._pool.share(block)
        num_known = len(match.blocks) * BLOCK_SIZE
        if match.blocks:
            self.tensors.give(slot, match.blocks, num_known)
        chain = self._chains[slot] = _Chain(match.node, len(match.blocks))
        chain.num_promised = num_blocks_of(len(ids) + 1)
        if match.part is not None:
            source, num_tokens = match.part
            self._pool.share(source)  # it is not taken for its own copy
            if self.grow(slot, num_known + num_tokens):
                self.tensors.copy(source, self.tensors.held[slot][-1], num_tokens)
                chain.rest = list(ids[num_known : num_known + num_tokens])
                num_known += num_tokens
            self._pool.release(source)
        return num_known

    def grow(self, slot: int, num_tokens: int, start: int | None = None) -> bool:
        """Give a slot room for so many tokens in all; False where all blocks are in use.

        Tokens from `start` on are read next: what none of them sees is given back.
        """
        held = self.tensors.held[slot]
        if start is not None and self._window is not None:
            self._give_back(slot, (start + 1 - self._window) // BLOCK_SIZE)
        num_new = num_blocks_of(num_tokens) - len(held)
        if num_new > self._pool.num_available:
            return False
        if num_new > 0:
            self.tensors.give(slot, [self._pool.take() for _ in range(num_new)], num_tokens)
        return True

    def learn(self, slot: int, ids: list[int]) -> None:
        """Say that the slot holds these tokens after those that it is known to hold."""
        chain, held = self._chains[slot], self.tensors.held[slot]
        if chain.node is None:
            return
        chain.rest += ids
        while chain.rest:
            block, own = held[chain.num_whole], tuple(chain.rest[:BLOCK_SIZE])
            if block == EMPTY:
                chain.node = None  # what follows cannot be found
                return
            node = self._index.add(block, chain.node, own)
            if len(own) < BLOCK_SIZE:
                return
            chain.node = node
            chain.num_whole += 1
            del chain.rest[:BLOCK_SIZE]

    def release(self, slot: int, *, is_valid: bool) -> None:
        """Take all from a slot; it can be found again, if it is valid."""
        # The first ones last: what follows a block is of no use without it.
        for block in reversed(self.tensors.held[slot]):
            if block == EMPTY:
                continue
            if not is_valid and self._pool.num_users(block) == 1:
                self._index.forget(block)
            self._pool.release(block)
        self.tensors.clear(slot)
        self._chains[slot] = _Chain()

    def _match(self, key: Hashable, ids: list[int]) -> Match:
        if not self._shares_prefixes:
            return Match([], None, None)
        return self._index.match(key, ids[:-1])

    def _give_back(self, slot: int, num_blocks: int) -> None:
        """Release the first blocks of a slot."""
        held = self.tensors.held[slot]
        for number in reversed(range(min(num_blocks, len(held)))):
            if held[number] == EMPTY:
                return
            self._pool.release(held[number])
            self.tensors.drop(slot, number)
