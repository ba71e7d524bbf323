"""Adapter folder <-> one archive file: written the same every time, read with distrust."""

import os
import secrets
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from src.errors import UserError
from src.weights.member_name import member_parts
from src.weights.printable import printable
from src.weights.tar import read_tar

MEMBERS: dict[str, int | None] = {
    "adapter_model.safetensors": None,
    "adapter_config.json": 1 << 20,
    "training.json": 1 << 20,
    "metrics.jsonl": 64 << 20,
    "report.html": 64 << 20,
}
"""The members that are copied out, with a cap in bytes; None is the caller's `max_bytes`."""
REQUIRED = ("adapter_model.safetensors", "adapter_config.json")

MAX_ZIP_ENTRIES = 64
MAX_ZIP_DIRECTORY_BYTES = 1 << 20
SKIPPED_BYTES = 64 << 20
"""Room for headers and for members that are not copied out."""
BLOCK_BYTES = 1 << 20
MAX_RATIO = 20
"""Trained numbers hardly get smaller, reports and metrics up to ten times."""
RATIO_FREE_BYTES = 16 << 20
PACKED_BLOCK_BYTES = 64 << 10
"""Small, because what is left of a block is copied with each read."""

Read = Callable[[int], bytes]
"""Return up to so many bytes, and none only at the end."""


def write_archive(folder: Path, path: Path) -> None:
    """Write the folder's files as one tar that is the same, byte for byte, for the same files."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.is_symlink())
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as output:
            with tarfile.open(fileobj=output, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for file in files:
                    member = tarfile.TarInfo(file.name)  # mtime, uid and gid are 0
                    member.mode = 0o644
                    member.size = file.stat().st_size
                    with file.open("rb") as data:
                        tar.addfile(member, data)
            output.flush()
            os.fsync(output.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def read_archive(path: Path, folder: Path, *, max_bytes: int) -> None:
    """Copy the known members of a .tar, .tar.gz or .zip into the folder, or leave it as it is."""
    members = MemberWriter(folder, max_bytes)
    try:
        with path.open("rb") as file:
            start = file.read(512)
            file.seek(0)
            if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                _read_zip(file, members)
            elif start.startswith(b"\x1f\x8b"):
                read_tar(_Bounded(_Gunzip(file).read, members.total_bytes).read, members.copy)
            elif start[257:262] == b"ustar":
                read_tar(_Bounded(file.read, members.total_bytes).read, members.copy)
            else:
                raise UserError(
                    f"the weights are not a .tar, .tar.gz or .zip archive: found {describe(start)}"
                )
        members.check_required()
    except BaseException:
        members.remove()
        raise


def describe(start: bytes) -> str:
    """Return what a file that begins with these bytes looks like."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "an empty file"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<body", b"<!--")):
        return "what looks like an HTML page"
    if text.startswith((b"{", b"[")):
        return "what looks like JSON text"
    if start[8:9] == b"{":
        return "what looks like a bare safetensors file"
    for magic, name in (
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstandard"),
        (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
        (b"Rar!", "RAR"),
        (b"\x80", "pickle"),
    ):
        if start.startswith(magic):
            return f"what looks like {name} data"
    return "something else"


class MemberWriter:
    """Takes each file of an archive and keeps the known ones, once, in a folder."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._caps = {name: max_bytes if cap is None else cap for name, cap in MEMBERS.items()}
        self.total_bytes = sum(self._caps.values()) + SKIPPED_BYTES
        self._top: str | None = None
        self._written: list[str] = []

    def copy(self, name: str, size: int, read: Read) -> bool:
        """Copy a file if it is a known member; return whether it was read."""
        parts = member_parts(name)
        if not parts:
            raise UserError("weights archive: a file has no name")
        if len(parts) > 2 or parts[-1] not in MEMBERS:
            return False
        top, member = "/".join(parts[:-1]), parts[-1]
        if member in self._written and top == self._top:
            raise UserError(f"weights archive: {member} is in it twice")
        if self._top not in (None, top):
            raise UserError(
                f"weights archive: expected all files in one folder, found {member} in "
                f"'{printable(top) or '.'}' and others in '{printable(self._top) or '.'}'"
            )
        if size > self._caps[member]:
            raise UserError(
                f"weights archive: {member} has {size:,} bytes, "
                f"expected at most {self._caps[member]:,}"
            )
        self._top = top
        self._write(member, size, read)
        return True

    def check_required(self) -> None:
        """Refuse an archive without the files that make an adapter."""
        for name in REQUIRED:
            if name not in self._written:
                raise UserError(f"weights archive: {name} is missing")

    def remove(self) -> None:
        """Take back every file that was written."""
        for name in self._written:
            (self._folder / name).unlink(missing_ok=True)

    def _write(self, member: str, size: int, read: Read) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(self._folder / member, flags, 0o600), "wb") as output:
            self._written.append(member)
            while size > 0:
                block = read(min(size, BLOCK_BYTES))
                if not block:
                    raise UserError(f"weights archive: it ends in the middle of {member}")
                output.write(block)
                size -= len(block)


def _check_ratio(num_bytes: int, packed_bytes: int) -> None:
    """Refuse what unpacks to far more than numbers and text ever do: it is there to fill a disk."""
    if num_bytes > RATIO_FREE_BYTES + MAX_RATIO * packed_bytes:
        raise UserError(
            f"weights archive: {packed_bytes:,} packed bytes unpack to {num_bytes:,} or more, "
            f"expected at most {MAX_RATIO} times as many"
        )


class _Bounded:
    """Stops a stream that has more bytes than an archive of weights can need."""

    def __init__(self, read: Read, max_bytes: int) -> None:
        self._read = read
        self._max_bytes = max_bytes
        self._left = max_bytes

    def read(self, size: int) -> bytes:
        block = self._read(size)
        self._left -= len(block)
        if self._left < 0:
            raise UserError(f"weights archive: it holds more than {self._max_bytes:,} bytes")
        return block


class _Gunzip:
    """Unpacks gzip a block at a time, whatever the ratio."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._packed = b""
        self._packed_bytes = self._bytes = 0
        self._unpacker = zlib.decompressobj(wbits=31)

    def read(self, size: int) -> bytes:
        while not self._unpacker.eof:
            packed = self._packed
            if not packed:
                packed = self._file.read(PACKED_BLOCK_BYTES)
                self._packed_bytes += len(packed)
            try:
                block = self._unpacker.decompress(packed, size)
            except zlib.error:
                raise UserError("weights archive: its gzip data are damaged") from None
            self._packed = self._unpacker.unconsumed_tail
            if block:
                self._bytes += len(block)
                _check_ratio(self._bytes, self._packed_bytes)
                return block
            if not packed and not self._unpacker.eof:
                raise UserError("weights archive: its gzip data end too early")
        self._check_end()
        return b""

    def _check_end(self) -> None:
        """Let only padding follow: a second gzip stream would be a second archive."""
        rest = self._unpacker.unused_data
        while rest or (rest := self._file.read(BLOCK_BYTES)):
            if rest.strip(b"\0"):
                raise UserError("weights archive: there are data after the end of its gzip data")
            rest = b""


def _read_zip(file: BinaryIO, members: MemberWriter) -> None:
    file_bytes = _check_zip_directory(file)
    try:
        with zipfile.ZipFile(file) as archive:
            left = members.total_bytes
            for entry in archive.infolist():
                # zipfile itself stumbles over these two.
                if not entry.filename or entry.header_offset < 0:
                    raise UserError("weights archive: the zip is damaged")
                _check_zip_entry(entry)
                if entry.is_dir():
                    continue
                left -= entry.file_size
                if left < 0:
                    raise UserError(
                        f"weights archive: it holds more than {members.total_bytes:,} bytes"
                    )
                _check_ratio(members.total_bytes - left, file_bytes)
                with archive.open(entry) as data:
                    members.copy(entry.filename, entry.file_size, data.read)
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


def _check_zip_directory(file: BinaryIO) -> int:
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
    if num_entries > MAX_ZIP_ENTRIES or directory_bytes > MAX_ZIP_DIRECTORY_BYTES:
        raise UserError(
            f"weights archive: expected at most {MAX_ZIP_ENTRIES} entries, "
            f"found {num_entries} in {directory_bytes:,} bytes"
        )
    return size


def _check_zip_entry(entry: zipfile.ZipInfo) -> None:
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


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
