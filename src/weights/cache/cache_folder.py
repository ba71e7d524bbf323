"""A folder of one's own in a folder that several processes may be given."""

import itertools
import os
import shutil
import stat
from pathlib import Path

from filelock import FileLock, Timeout

from src.errors import UserError


def claim_folder(parent: Path) -> tuple[Path, FileLock]:
    """Return a folder below `parent` that no living process has, and the lock that keeps it ours.

    What a process that has ended left complete is still in it. Raises UserError for a parent that
    other users can write to: what they put there would be taken for what was checked.
    """
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = parent.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(
            "WEIGHTS_CACHE: expected a folder that belongs to this user and that only this user "
            f"can write to, found one of user {found.st_uid} with mode {found.st_mode & 0o777:o}"
        )
    for number in itertools.count():
        lock = FileLock(parent / f"{number}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        folder = parent / str(number)
        folder.mkdir(mode=0o700, exist_ok=True)
        for unfinished in folder.glob(".*"):
            shutil.rmtree(unfinished)
        return folder, lock
    raise AssertionError("no end of numbers")
