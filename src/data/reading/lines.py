"""The lines of a text file of any size, plain or gzip, in bounded memory."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.data.reading.file_kind import START_BYTES, name_other_kind
from src.errors import UserError
from src.files.gzip import Gunzip, UnpackLimits
from src.files.kind import is_gzip

MAX_LINE_BYTES = 2 * 2**20
"""Brackets take up to fifty times their size when they are parsed."""
FREE_BLANK_LINES = 100_000
BLANK_LINES_PER_LINE = 10
"""A few megabytes of gzip can hold billions."""
FREE_UNPACKED_BYTES = 2**28
MAX_RATIO = 100
"""Text packs to about a quarter, and many times over only where it repeats itself."""
_BUFFER_BYTES = 2**20


def read_lines(path: Path, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, line) of each line that is not blank, without its line break.

    Raises UserError for a file that is no UTF-8 text file and for a line over `MAX_LINE_BYTES`.
    """
    try:
        with _open(path, name) as file:
            _check_kind(file, name)
            yield from _bounded_lines(file, name)
    except OSError as error:
        raise UserError(f"{name}: the file cannot be read ({error.strerror or error})") from None


def _open(path: Path, name: str) -> io.BufferedReader:
    raw: Any = io.FileIO(path)
    is_packed = is_gzip(raw.read(2))
    raw.seek(0)
    if is_packed:
        raw = Gunzip(raw, UnpackLimits(name, MAX_RATIO, FREE_UNPACKED_BYTES))
    return io.BufferedReader(raw, _BUFFER_BYTES)


def _check_kind(file: io.BufferedReader, name: str) -> None:
    kind = name_other_kind(file.peek(START_BYTES)[:START_BYTES])
    if kind is not None:
        where = "packed in gzip " if isinstance(file.raw, Gunzip) else ""
        raise UserError(f"{name}: expected a JSONL file in UTF-8, found {where}{kind}")


def _bounded_lines(file: io.BufferedReader, name: str) -> Iterator[tuple[int, bytes]]:
    number = num_blank = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise UserError(
                f"{name}, line {number}: the line is longer than {MAX_LINE_BYTES:,} bytes; "
                "expected one example a line, a longer text in several"
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
