"""The lines of a text file of any size, plain or gzip, in bounded memory."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from src.errors import UserError

MAX_LINE_BYTES = 8 * 2**20
FREE_BLANK_LINES = 100_000
BLANK_LINES_PER_LINE = 10
"""A few megabytes of gzip can hold billions."""
FREE_UNPACKED_BYTES = 2**28
MAX_RATIO = 100
"""Text packs to about a quarter, and many times over only where it repeats itself."""

_WRONG_KINDS = {
    b"PK\x03\x04": "a zip archive or Excel workbook",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite f": "an SQLite database",
    b"\x80\x04\x95": "a pickle",
    b"\x93NUMPY": "a NumPy file",
    b"<!DOCTYP": "an HTML page",
    b"<!doctyp": "an HTML page",
    b"<html": "an HTML page",
    b"{\\rtf": "a rich text document",
    b"\xd0\xcf\x11\xe0": "an old Word or Excel file",
    b"\x00\x00\xfe\xff": "a UTF-32 text",
    b"\xff\xfe\x00\x00": "a UTF-32 text",
    b"%PDF": "a PDF",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"\xff\xfe": "a UTF-16 text",
    b"\xfe\xff": "a UTF-16 text",
}


def read_lines(path: Path, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, line) of each line that is not blank, without its line break.

    Raises UserError for a file that is no UTF-8 text file and for a line over `MAX_LINE_BYTES`.
    """
    try:
        with _open(path, name) as file:
            yield from _bounded_lines(file, name)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{name}: the gzip file is damaged or cut off ({error})") from None
    except OSError as error:
        raise UserError(f"{name}: the file cannot be read ({error.strerror or error})") from None


def _open(path: Path, name: str) -> BinaryIO:
    with path.open("rb") as file:
        start = file.read(8)
    for magic, kind in _WRONG_KINDS.items():
        if start.startswith(magic):
            raise UserError(f"{name}: expected a JSONL file in UTF-8, found {kind}")
    if start.startswith(b"\x1f\x8b"):
        unpacked = _BoundedGzip(path, name)
        return io.BufferedReader(unpacked, buffer_size=2**20)  # type: ignore[arg-type]
    return path.open("rb", buffering=2**20)


class _BoundedGzip(gzip.GzipFile):
    """Stops where there is no end in sight."""

    def __init__(self, path: Path, shown_name: str) -> None:
        super().__init__(path, "rb")
        self._shown_name = shown_name
        self._limit = FREE_UNPACKED_BYTES + MAX_RATIO * path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._limit -= len(data)
        if self._limit < 0:
            raise UserError(
                f"{self._shown_name}: expected text that unpacks to at most {MAX_RATIO} times its "
                "size, found more"
            )
        return data


def _bounded_lines(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    number = num_blank = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise UserError(
                f"{name}, line {number}: the line is longer than {MAX_LINE_BYTES:,} bytes; "
                "expected one example a line"
            )
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        line = line.strip(b" \t\r\n")
        if line:
            yield number, line
            continue
        num_blank += 1
        if num_blank > FREE_BLANK_LINES + BLANK_LINES_PER_LINE * (number - num_blank):
            raise UserError(
                f"{name}, line {number}: expected one JSON object a line, found {num_blank:,} "
                f"blank lines among {number:,}"
            )
