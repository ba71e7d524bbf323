"""The lines of a text file of any size, plain or gzip, in bounded memory."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from src.errors import UserError

MAX_LINE_BYTES = 16 * 2**20

_WRONG_KINDS = {
    b"PK\x03\x04": "a zip archive or Excel workbook",
    b"PAR1": "a Parquet file",
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
        return io.BufferedReader(gzip.GzipFile(path), buffer_size=2**20)  # type: ignore[arg-type]
    return path.open("rb", buffering=2**20)


def _bounded_lines(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    number = 0
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
