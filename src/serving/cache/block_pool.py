"""The pages of the key/value cache in blocks: taken, shared, released, kept while idle."""

from collections import Counter, OrderedDict

from src.serving.cache.kv_cache import Block
from src.serving.cache.prefix_index import PrefixIndex


class BlockPool:
    """Owns every page: it is free, or in a block that is idle but known, or that has users.

    The known ones that were used longest ago are taken last of all.
    """

    def __init__(self, pages: range, index: PrefixIndex) -> None:
        self._free = list(reversed(pages))  # those that were used before are taken first
        self._idle: OrderedDict[Block, None] = OrderedDict()
        self._num_users: Counter[Block] = Counter()
        self._index = index
        self.num_available = len(pages)
        """How many pages have no user."""

    def take(self, num_pages: int) -> Block:
        """Return a block of available pages with one user, who may write to it."""
        while len(self._free) < num_pages:
            known, _ = self._idle.popitem(last=False)
            self._index.forget(known)
            self._free += known
        block = tuple([self._free.pop() for _ in range(num_pages)])
        self._num_users[block] = 1
        self.num_available -= num_pages
        return block

    def share(self, block: Block) -> None:
        """Give a known block one more user; none of several writes to it."""
        if block in self._idle:
            del self._idle[block]
            self.num_available -= len(block)
        self._num_users[block] += 1

    def release(self, block: Block) -> None:
        """Say that one of the users of a block needs it no more."""
        self._num_users[block] -= 1
        if self._num_users[block]:
            return
        del self._num_users[block]
        self.num_available += len(block)
        if block in self._index:
            self._idle[block] = None
        else:
            self._free += block

    def num_users(self, block: Block) -> int:
        """Return how many need a block."""
        return self._num_users[block]
