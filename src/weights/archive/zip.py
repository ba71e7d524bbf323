"""Read a zip, once its list of entries is known to be harmless."""

import os
import stat
import struct
import zipfile
import zlib
from typing import BinaryIO

from src.errors import UserError
from src.files.printable import printable
from src.weights.archive.member_name import member_parts
from src.weights.archive.tar import Copy
from src.weights.archive.unpacked_size import LIMITS

MAX_ENTRIES = 64
MAX_DIRECTORY_BYTES = 1 << 20


def read_zip(file: BinaryIO, copy: Copy, *, max_bytes: int) -> None:
    """Offer every regular file of the zip to `copy`, in order; together at most so many bytes."""
    file_bytes = _check_directory(file)
    try:
        with zipfile.ZipFile(file) as archive:
            left = max_bytes
            for entry in archive.infolist():
                # zipfile itself stumbles over these.
                if not entry.filename or not 0 <= entry.header_offset < file_bytes:
                    raise UserError("weights archive: the zip is damaged")
                _check_entry(entry)
                if entry.is_dir():
                    continue
                left -= entry.file_size
                if left < 0:
                    raise UserError(f"weights archive: it holds more than {max_bytes:,} bytes")
                LIMITS.check_ratio(unpacked=max_bytes - left, packed=file_bytes)
                LIMITS.check_growth(unpacked=entry.file_size, packed=entry.compress_size)
                with archive.open(entry) as data:
                    # Some tools of Windows write their own separator.
                    copy(entry.filename.replace("\\", "/"), entry.file_size, data.read)
    except UserError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        ValueError,
        RuntimeError,  # and NotImplementedError
        OverflowError,
    ):
        raise UserError("weights archive: the zip is damaged") from None


def _check_directory(file: BinaryIO) -> int:
    """Bound the list of entries before zipfile reads it; return the size of the file."""
    size = file.seek(0, os.SEEK_END)
    tail_start = max(0, size - (1 << 16) - 22)
    file.seek(tail_start)
    tail = file.read()
    file.seek(0)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise UserError("weights archive: the zip is cut off, its list of entries is missing")
    num_entries, directory_bytes = struct.unpack("<HI", tail[end + 10 : end + 16])
    comment_bytes = int.from_bytes(tail[end + 20 : end + 22], "little")
    # zipfile takes the record in the last 22 bytes first: there must be only one to find.
    if len(tail) != end + 22 + comment_bytes:
        raise UserError("weights archive: the zip has data after its end")
    if tail[max(0, end - 20) : end].startswith(b"PK\x06\x07"):
        raise UserError("weights archive: zip64 is not taken, use .tar or .tar.gz")
    if num_entries > MAX_ENTRIES or directory_bytes > MAX_DIRECTORY_BYTES:
        raise UserError(
            f"weights archive: expected at most {MAX_ENTRIES} entries, "
            f"found {num_entries} in {directory_bytes:,} bytes"
        )
    return size


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = printable(entry.filename)
    member_parts(entry.orig_filename)
    if "\0" in entry.orig_filename:
        raise UserError(f"weights archive: {name!r} has a zero byte in its name")
    if entry.flag_bits & 0x1:
        raise UserError(f"weights archive: {name!r} is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(
            f"weights archive: {name!r} uses compression method {entry.compress_type}, "
            "expected stored or deflate"
        )
    kind = stat.S_IFDIR if entry.is_dir() else stat.S_IFREG
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, kind):
        raise UserError(f"weights archive: {name!r} is not a regular file")
