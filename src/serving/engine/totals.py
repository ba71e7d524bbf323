"""What the engine counts of all requests, written on its thread and read on any."""

import time
from collections import deque

WINDOW_SECONDS = 60


class Totals:
    """Tokens of all requests since the engine was ready."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what was done to warm up."""
        self.started_at = time.monotonic()
        self.num_computed_tokens = self.num_cached_tokens = self.num_output_tokens = 0
        self.num_proposed = self.num_accepted = self.num_preempted = 0
        self._in_second: deque[tuple[int, int]] = deque(maxlen=WINDOW_SECONDS)

    def count_output_token(self) -> None:
        """Count a token of an answer."""
        self.num_output_tokens += 1
        second, recent = int(time.monotonic()), self._in_second
        if recent and recent[-1][0] == second:
            recent[-1] = (second, recent[-1][1] + 1)
        else:
            recent.append((second, 1))

    def tokens_per_second(self) -> float:
        """Return the output tokens per second of the last minute."""
        now = time.monotonic()
        num_tokens = sum(
            num for second, num in self._in_second.copy() if second > now - WINDOW_SECONDS
        )
        return num_tokens / max(min(now - self.started_at, WINDOW_SECONDS), 1e-3)
