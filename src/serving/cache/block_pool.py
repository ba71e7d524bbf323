"""The blocks of the key/value cache: taken, shared, released, and kept while nobody needs them."""

from collections import Counter, OrderedDict

from src.serving.cache.prefix_index import PrefixIndex


class BlockPool:
    """Owns every block: it is free, or idle but known, or has users, of which there may be many.

    The known ones that were used longest ago are taken last of all.
    """

    def __init__(self, blocks: range, index: PrefixIndex) -> None:
        self._free = list(reversed(blocks))  # those that were used before are taken first
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._num_users: Counter[int] = Counter()
        self._index = index
        self.num_blocks = len(blocks)

    @property
    def num_available(self) -> int:
        """How many blocks have no user."""
        return len(self._free) + len(self._idle)

    def take(self) -> int:
        """Return an available block with one user, who may write to it."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._index.forget(block)
        self._num_users[block] = 1
        return block

    def share(self, block: int) -> None:
        """Give a known block one more user; none of several writes to it."""
        self._idle.pop(block, None)
        self._num_users[block] += 1

    def release(self, block: int) -> None:
        """Say that one of the users of a block needs it no more."""
        self._num_users[block] -= 1
        if self._num_users[block]:
            return
        del self._num_users[block]
        if block in self._index:
            self._idle[block] = None
        else:
            self._free.append(block)

    def num_users(self, block: int) -> int:
        """Return how many need a block."""
        return self._num_users[block]
