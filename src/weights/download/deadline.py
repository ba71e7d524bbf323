"""How long a download is waited for."""

import time
from collections.abc import Callable

CancelToken = Callable[[], bool]
"""Tells whether nobody waits for the work any more."""
LOOK_SECONDS = 0.2
"""How often those who wait look whether they are canceled."""


def never() -> bool:
    """Cancel nothing."""
    return False


class Deadline:
    """Ends when the time is up or when the work is canceled, once and for all."""

    def __init__(self, seconds: float, is_canceled: CancelToken) -> None:
        self._deadline = time.monotonic() + seconds
        self._is_canceled = is_canceled
        self._end: str | None = None

    def end(self) -> str | None:
        """Return why it has ended, if it has."""
        # Kept: what was cut off is not complete, also if somebody comes and wants it.
        if self._end is None and time.monotonic() >= self._deadline:
            self._end = "it took too long"
        elif self._end is None and self._is_canceled():
            self._end = "nobody waits for it any more"
        return self._end

    @property
    def seconds_left(self) -> float:
        """Return what is left of the time."""
        return max(0.0, self._deadline - time.monotonic())
