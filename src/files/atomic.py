"""Files and folders that appear under their name when all of them is written, or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.files.scratch import remove_abandoned, scratch_folder

_PARTIAL = ".partial-"


@contextmanager
def replacing_file(path: Path, *, is_durable: bool = True) -> Iterator[Path]:
    """Yield where to write a file that then takes the place of `path`.

    A durable one has reached the disk by then.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        if is_durable:
            sync(partial)
        partial.replace(path)
        if is_durable:
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder that then takes the place of `folder`, when its files are on disk."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(_PARTIAL, folder.parent)
    with scratch_folder(_PARTIAL, folder.parent) as scratch:
        # Not the scratch folder itself, which is private to this user.
        partial = scratch / folder.name
        partial.mkdir()
        yield partial
        for path in (*partial.iterdir(), partial):
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
