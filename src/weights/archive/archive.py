"""Adapter folder <-> one archive file: written the same every time, read with distrust."""

import io
import tarfile
from pathlib import Path

from src.errors import UserError
from src.files.atomic import replacing_file
from src.files.gzip import Gunzip, UnpackLimits
from src.files.kind import START_BYTES, is_gzip, is_tar, other_kind
from src.weights.archive.json_output import ArchiveInJson, is_json
from src.weights.archive.members import MemberWriter, Read
from src.weights.archive.tar import read_tar

LIMITS = UnpackLimits("weights archive", max_ratio=20, free_bytes=16 << 20)
"""Trained numbers hardly get smaller, reports and metrics up to ten times."""


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
    """Copy the known members of a .tar or .tar.gz into the folder, or leave it as it is.

    The archive may also be in the JSON that `cog train -o FILE` writes. Raises UserError.
    """
    members = MemberWriter(folder, max_bytes)
    try:
        with path.open("rb") as file:
            if is_json(file.peek(START_BYTES)):
                file = io.BufferedReader(ArchiveInJson(file))
            start = file.peek(START_BYTES)[:START_BYTES]
            if not is_gzip(start) and not is_tar(start):
                raise UserError(
                    "the weights are not a .tar or .tar.gz archive: found "
                    f"{_describe(start)}; to pack an adapter: tar -C FOLDER -cf weights.tar ."
                )
            read = Gunzip(file, LIMITS).read if is_gzip(start) else file.read
            read_tar(_bounded(read, members.total_bytes), members.copy)
        members.check_required()
    except BaseException:
        members.remove()
        raise


def _bounded(read: Read, max_bytes: int) -> Read:
    """Stop a stream that has more bytes than an archive of weights can need."""
    left = max_bytes

    def read_bounded(size: int) -> bytes:
        nonlocal left
        block = read(size)
        left -= len(block)
        if left < 0:
            raise UserError(f"weights archive: it holds more than {max_bytes:,} bytes")
        return block

    return read_bounded


def _describe(start: bytes) -> str:
    """Return what a file that begins with these bytes looks like."""
    return (other_kind(start) or "something else") if start else "an empty file"
