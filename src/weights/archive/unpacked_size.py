"""How much may come out of an archive of weights."""

from src.errors import UserError
from src.weights.archive.tar import Read

MAX_RATIO = 20
"""Trained numbers hardly get smaller, reports and metrics up to ten times."""
RATIO_FREE_BYTES = 16 << 20
PACKED_FREE_BYTES = 1 << 20


def check_ratio(num_bytes: int, packed_bytes: int) -> None:
    """Refuse what unpacks to far more than numbers and text ever do: it is there to fill a disk."""
    if num_bytes > RATIO_FREE_BYTES + MAX_RATIO * packed_bytes:
        raise UserError(
            f"weights archive: {packed_bytes:,} packed bytes unpack to {num_bytes:,} or more, "
            f"expected at most {MAX_RATIO} times as many"
        )


def check_growth(num_bytes: int, packed_bytes: int) -> None:
    """Refuse what is far smaller unpacked than packed: it is there to keep the reader busy."""
    if packed_bytes > PACKED_FREE_BYTES + 2 * num_bytes:
        raise UserError(
            f"weights archive: {packed_bytes:,} packed bytes unpack to only {num_bytes:,}, "
            "expected more than half as many"
        )


class Bounded:
    """Stops a stream that has more bytes than an archive of weights can need."""

    def __init__(self, read: Read, max_bytes: int) -> None:
        self._read = read
        self._max_bytes = max_bytes
        self._left = max_bytes

    def read(self, size: int) -> bytes:
        """Return up to so many bytes of the stream, and none only at its end."""
        block = self._read(size)
        self._left -= len(block)
        if self._left < 0:
            raise UserError(f"weights archive: it holds more than {self._max_bytes:,} bytes")
        return block
