"""Adapter folder <-> one archive file: written the same every time, read with distrust."""

import os
import secrets
import tarfile
from pathlib import Path

from src.errors import UserError
from src.weights.archive.gunzip import Gunzip
from src.weights.archive.members import MemberWriter
from src.weights.archive.tar import read_tar
from src.weights.archive.unpacked_size import Bounded
from src.weights.archive.zip import read_zip


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


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_archive(path: Path, folder: Path, *, max_bytes: int) -> None:
    """Copy the known members of a .tar, .tar.gz or .zip into the folder, or leave it as it is."""
    members = MemberWriter(folder, max_bytes)
    try:
        with path.open("rb") as file:
            start = file.read(512)
            file.seek(0)
            if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                read_zip(file, members.copy, max_bytes=members.total_bytes)
            elif start.startswith(b"\x1f\x8b"):
                read_tar(Bounded(Gunzip(file).read, members.total_bytes).read, members.copy)
            elif start[257:262] == b"ustar":
                read_tar(Bounded(file.read, members.total_bytes).read, members.copy)
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
