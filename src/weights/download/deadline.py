"""How long a download is waited for."""

import time
from collections.abc import Callable

CancelToken = Callable[[], bool]
LOOK_SECONDS = 0.2
"""How often those who wait look whether the file is still wanted."""


def always() -> bool:
    """Want the file whatever comes."""
    return True


class Deadline:
    """Ends when the time is up or when nobody wants the file any more, once and for all."""

    def __init__(self, seconds: float, is_wanted: CancelToken) -> None:
        self._deadline = time.monotonic() + seconds
        self._is_wanted = is_wanted
        self._end: str | None = None

    def end(self) -> str | None:
        """Return why it has ended, if it has."""
        # Kept: what was cut off is not whole, also if somebody comes and wants it.
        if self._end is None and time.monotonic() >= self._deadline:
            self._end = "it took too long"
        elif self._end is None and not self._is_wanted():
            self._end = "nobody waits for it any more"
        return self._end

    @property
    def seconds_left(self) -> float:
        """Return what is left of the time, and never nothing: no socket takes that."""
        return max(0.001, self._deadline - time.monotonic())
