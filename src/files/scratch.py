"""Temporary folders of this process; what a killed one leaves is removed by the next that looks.

Each is locked for as long as its process lives: only a lock tells the dead from the living, as
process ids come again.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".scratch"
"""Keeps folders of others, which may be called `training-data`, from being taken for ours."""


@contextmanager
def scratch_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Context of a folder that is removed at its end; by default among the temporary files."""
    with _locked(prefix, parent) as folder:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class LastFolder:
    """A folder that stays until the next one is asked for, by this process or by one after it."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._stack = contextlib.ExitStack()

    def renew(self) -> Path:
        """Remove the last folder and return a new one."""
        self.remove()
        return self._stack.enter_context(scratch_folder(self._prefix))

    def remove(self) -> None:
        """Remove the last folder."""
        self._stack.close()


def remove_abandoned(prefix: str, parent: Path | None = None) -> None:
    """Remove the folders of processes that have ended without."""
    for path in (parent or Path(tempfile.gettempdir())).glob(f"{prefix}*{SUFFIX}"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


@contextmanager
def _locked(prefix: str, parent: Path | None) -> Iterator[Path]:
    # Under another name until it is locked: it would look abandoned.
    new = Path(tempfile.mkdtemp(prefix=f".new-{prefix}", dir=parent))
    descriptor = os.open(new, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every shared file system has locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        folder = new.with_name(f"{new.name.removeprefix('.new-')}{SUFFIX}")
        new.rename(folder)
        yield folder
    finally:
        os.close(descriptor)
