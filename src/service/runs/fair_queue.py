"""A queue that is fair to owners: the next is of the owner with the least at work."""

import math
from collections import Counter, OrderedDict, deque


class FairQueue:
    """Run ids that wait, by owner; who has taken one gives it back when it has ended."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[str]] = OrderedDict()
        self._at_work: Counter[str] = Counter()
        self._taken: dict[str, str] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def num_taken(self) -> int:
        """How many are at work."""
        return len(self._taken)

    def put(self, owner: str, run_id: str) -> None:
        """Add a run behind those of its owner."""
        self._waiting.setdefault(owner, deque()).append(run_id)

    def take(self, most_of_owner: float = math.inf) -> str | None:
        """Return the run whose turn it is; None where none waits of an owner who may have more."""
        owner = min(self._waiting, key=lambda name: self._at_work[name], default=None)
        if owner is None or self._at_work[owner] >= most_of_owner:
            return None
        run_id = self._waiting[owner].popleft()
        if self._waiting[owner]:
            self._waiting.move_to_end(owner)
        else:
            del self._waiting[owner]
        self._at_work[owner] += 1
        self._taken[run_id] = owner
        return run_id

    def give_back(self, run_id: str) -> None:
        """Note that a taken run has ended."""
        owner = self._taken.pop(run_id)
        self._at_work[owner] -= 1
        if not self._at_work[owner]:
            del self._at_work[owner]
