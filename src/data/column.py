"""A column of numbers as a .npy file that grows and is cut without ever being in memory."""

import shutil
from pathlib import Path
from typing import IO, Any

import numpy as np

_BUFFER_BYTES = 2**16


class Column:
    """Context of a new .npy file that numbers are appended to."""

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        self._dtype = np.dtype(dtype)
        self._length = 0
        self._file = path.open("wb", _BUFFER_BYTES)
        _write_header(self._file, self._dtype, 0)

    def extend(self, numbers: Any) -> None:
        """Append numbers."""
        self._file.write(np.asarray(numbers, self._dtype).tobytes())
        self._length += len(numbers)

    def __enter__(self) -> "Column":
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            _write_header(self._file, self._dtype, self._length)


def read_column(path: Path) -> np.ndarray:
    """Map the numbers of a .npy file into memory."""
    # An empty file cannot be mapped.
    return np.load(path, mmap_mode="r") if path.stat().st_size > 128 else np.load(path)


def copy_tail(path: Path, start: int, target: Path) -> None:
    """Copy the numbers from `start` on to a new .npy file."""
    with path.open("rb") as source, target.open("wb") as tail:
        dtype, length = _read_header(source)
        _write_header(tail, dtype, length - start)
        source.seek(start * dtype.itemsize, 1)
        shutil.copyfileobj(source, tail, _BUFFER_BYTES)


def cut_tail(path: Path, start: int) -> None:
    """Remove the numbers from `start` on."""
    with path.open("r+b") as file:
        dtype, _ = _read_header(file)
        file.truncate(file.tell() + start * dtype.itemsize)
        file.seek(0)
        _write_header(file, dtype, start)


def _write_header(file: IO[bytes], dtype: np.dtype, length: int) -> None:
    # NumPy leaves room in it for any length: it can be written again in the same place.
    about = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, about)


def _read_header(file: IO[bytes]) -> tuple[np.dtype, int]:
    np.lib.format.read_magic(file)
    (length,), _, dtype = np.lib.format.read_array_header_1_0(file)
    return dtype, length
