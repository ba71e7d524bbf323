"""Room on disk for what will be written, looked for before it is needed."""

import errno
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from src.errors import UserError
from src.files.printable import show_bytes

RUN_FOLDER = "the run's folder"


@dataclass(frozen=True)
class SpaceNeed:
    """Bytes that will be written below a folder, which need not be there yet."""

    what: str
    place: str
    """What to call the folder: its path is this machine's own."""
    folder: Path
    size: int


def check_disk_space(needs: Iterable[SpaceNeed]) -> list[str]:
    """Return what is needed and what is free, a part for each disk.

    Raises UserError for the first disk without so much room.
    """
    disks: dict[int, list[SpaceNeed]] = {}
    for need in needs:
        disks.setdefault(os.stat(_existing(need.folder)).st_dev, []).append(need)
    return [_check_disk(disk) for disk in disks.values()]


def _check_disk(needs: list[SpaceNeed]) -> str:
    size = sum(need.size for need in needs)
    free = shutil.disk_usage(_existing(needs[0].folder)).free
    places = " and ".join(dict.fromkeys(need.place for need in needs))
    parts = ", ".join(f"{need.what} {show_bytes(need.size)}" for need in needs)
    if size > free:
        raise UserError(
            f"the disk of {places} has {show_bytes(free)} free, and about {show_bytes(size)} are "
            f"needed ({parts}); expected more room"
        )
    return f"about {show_bytes(size)} of {show_bytes(free)} free in {places} ({parts})"


def write_error_reason(error: Exception, folder: Path, needed: int) -> str:
    """Return one sentence on why so many bytes were not written to a folder."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    # safetensors puts the code into its text.
    in_text = any(f"os error {code}" in str(error) for code in codes)
    if not in_text and getattr(error, "errno", None) not in codes:
        return str(error)
    free = shutil.disk_usage(folder).free
    return f"the disk is full: about {show_bytes(needed)} are needed, {show_bytes(free)} free"


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())
