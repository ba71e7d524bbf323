"""The files of an adapter's archive: which are taken out, under which names, and how."""

import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

from src.errors import UserError
from src.files.printable import printable
from src.weights.archive.other_files import missing_file

MEMBERS: dict[str, int | None] = {
    "adapter_model.safetensors": None,
    "adapter_config.json": 1 << 20,
    "training.json": 1 << 20,
    "metrics.jsonl": 64 << 20,
    "report.html": 64 << 20,
}
"""The members that are copied out, with a cap in bytes; None is the caller's `max_bytes`."""
REQUIRED = ("adapter_model.safetensors", "adapter_config.json")

CHECKPOINT = re.compile("checkpoint-[0-9]+")
SKIPPED_BYTES = 64 << 20
"""Room for headers and for members that are not copied out."""
BLOCK_BYTES = 1 << 20
MAX_CHARACTERS, MAX_PARTS = 1000, 100
"""Of a name in the archive."""

Read = Callable[[int], bytes]
"""Return up to so many bytes, and none only at the end."""


class MemberWriter:
    """Takes each file of an archive and keeps the known ones, once, in a folder."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._caps = {name: max_bytes if cap is None else cap for name, cap in MEMBERS.items()}
        self.total_bytes = sum(self._caps.values()) + SKIPPED_BYTES
        self._top: str | None = None
        self._written: list[str] = []
        self._others: list[str] = []
        self._conflict: str | None = None

    def copy(self, name: str, size: int, read: Read) -> bool:
        """Copy a file if it is a known member; return whether it was read."""
        parts = member_parts(name)
        if not parts:
            raise UserError("weights archive: a file has no name")
        if len(parts) > 2 or parts[-1] not in MEMBERS:
            self._others.append("/".join(parts))
            return False
        top, member = "/".join(parts[:-1]), parts[-1]
        if member in self._written and top == self._top:
            raise UserError(f"weights archive: {member} is in it twice")
        if self._top not in (None, top) and not self._prefers(top, member):
            return False
        if size > self._caps[member]:
            raise UserError(
                f"weights archive: {member} has {size:,} bytes, "
                f"expected at most {self._caps[member]:,}"
            )
        self._top = top
        self._write(member, size, read)
        return True

    def _prefers(self, top: str, member: str) -> bool:
        """Tell whether files of another folder replace those that are there.

        Trainers leave checkpoints in folders of their own, before or behind the adapter.
        """
        assert self._top is not None
        if not top and CHECKPOINT.fullmatch(self._top):
            self.remove()
            self._conflict = None
            return True
        conflict = (
            f"weights archive: expected all files in one folder, found {member} in "
            f"'{printable(top) or '.'}' and others in '{printable(self._top) or '.'}'"
        )
        if not CHECKPOINT.fullmatch(top):
            raise UserError(conflict)
        if self._top:
            self._conflict = conflict
        return False

    def check_required(self) -> None:
        """Refuse an archive without the files that make an adapter, or with those of several."""
        if self._conflict is not None:
            raise UserError(self._conflict)
        for name in REQUIRED:
            if name not in self._written:
                raise missing_file(name, "weights archive", self._others)

    def remove(self) -> None:
        """Take back every file that was written."""
        for name in self._written:
            (self._folder / name).unlink(missing_ok=True)
        self._written.clear()

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


def member_parts(name: str) -> list[str]:
    """Return the parts of a member's path, which is none for the archive's own folder.

    Raises UserError for a name that leads out of the archive or is no plain text.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if len(name) > MAX_CHARACTERS or len(parts) > MAX_PARTS:
        raise UserError(
            f"weights archive: expected names of at most {MAX_CHARACTERS:,} characters in "
            f"{MAX_PARTS} parts, found {len(name):,} in {len(parts):,}: {printable(name, 40)!r}"
        )
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
        raise UserError(f"weights archive: a name leads out of the archive: {printable(name)!r}")
    # Control characters forge lines of a log; the last is what stands for bytes that are no text.
    if any(unicodedata.category(c) in ("Cc", "Cs") or c == "\ufffd" for c in name):
        raise UserError(
            "weights archive: expected names in plain UTF-8 text, found control characters or "
            f"other bytes in {printable(name)!r}"
        )
    return parts
