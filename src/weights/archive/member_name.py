"""The names that members of an archive may have: they stay inside, and can be shown."""

import unicodedata

from src.errors import UserError
from src.files.printable import printable

MAX_CHARACTERS = 1000
MAX_PARTS = 100


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
