"""The file or folder of weights that a path in a request names."""

from pathlib import Path

from src.errors import UserError
from src.weights.archive.members import MEMBERS
from src.weights.download.url import printable_url

MAX_PATH_CHARACTERS = 1000


def find_local(source: str, local_root: Path | None) -> Path:
    """Return the file or folder that a path names, below `local_root` if one is given.

    Raises UserError if there is none, or if it lies elsewhere.
    """
    if "\0" in source:
        raise UserError("weights: expected a path, found a NUL character in it")
    if len(source) > MAX_PATH_CHARACTERS:
        raise UserError(
            f"weights: expected a path of at most {MAX_PATH_CHARACTERS:,} characters, "
            f"found {len(source):,}"
        )
    path = Path(source)
    try:
        if local_root is not None:
            root = local_root.resolve()
            path = (root / path).resolve()
            inside = [path, *(path / name for name in MEMBERS)]  # these may be links themselves
            if not all(place.resolve().is_relative_to(root) for place in inside):
                raise UserError(f"weights: {printable_url(source)!r} lies outside of WEIGHTS_DIR")
        exists = path.is_file() or path.is_dir()  # a pipe would be waited for without end
    # A name longer than the file system takes, a loop of links, half of a surrogate pair.
    except (OSError, RuntimeError, UnicodeError):
        exists = False
    if not exists:
        raise UserError(f"weights: there is no file or folder {printable_url(source)!r}")
    return path
