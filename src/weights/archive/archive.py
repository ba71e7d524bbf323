"""Adapter folder <-> one archive file: written the same every time, read with distrust."""

import tarfile
from pathlib import Path

from src.errors import UserError
from src.files.atomic import replacing_file
from src.files.gzip import Gunzip
from src.files.kind import is_gzip, is_tar, is_zip, other_kind
from src.weights.archive.members import MemberWriter
from src.weights.archive.tar import read_tar
from src.weights.archive.unpacked_size import LIMITS, Bounded
from src.weights.archive.zip import read_zip


def write_archive(folder: Path, path: Path) -> None:
    """Write the folder's files as one tar that is the same, byte for byte, for the same files."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.is_symlink())
    with (
        replacing_file(path) as partial,
        tarfile.open(partial, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for file in files:
            member = tarfile.TarInfo(file.name)  # mtime, uid and gid are 0
            member.mode = 0o644
            member.size = file.stat().st_size
            with file.open("rb") as data:
                tar.addfile(member, data)


def read_archive(path: Path, folder: Path, *, max_bytes: int) -> None:
    """Copy the known members of a .tar, .tar.gz or .zip into the folder, or leave it as it is."""
    members = MemberWriter(folder, max_bytes)
    try:
        with path.open("rb") as file:
            start = file.read(512)
            file.seek(0)
            if is_zip(start):
                read_zip(file, members.copy, max_bytes=members.total_bytes)
            elif is_gzip(start):
                read_tar(Bounded(Gunzip(file, LIMITS).read, members.total_bytes).read, members.copy)
            elif is_tar(start):
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
    if not start:
        return "an empty file"
    is_json = start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"["))
    return other_kind(start) or ("JSON text" if is_json else "something else")
