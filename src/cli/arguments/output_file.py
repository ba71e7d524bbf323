"""Where `-o` puts the weights, proven before a training takes its time."""

import secrets
from pathlib import Path

from src.errors import UserError
from src.files.printable import printable

NAME = "weights.tar"


def find_output(asked: str, train_data: object) -> Path:
    """Return the file to write: what was asked for, or `weights.tar` in a folder.

    Raises UserError for a place that cannot be written.
    """
    path = Path(asked)
    try:
        if asked.endswith("/"):
            path.mkdir(exist_ok=True)
        if path.is_dir():
            path /= NAME
        if not path.parent.is_dir():
            raise UserError(f"-o: there is no folder {printable(path.parent)}")
        if path.exists() and not path.is_file():
            raise UserError(
                f"-o: expected a file or folder, found {printable(path)}, which is none"
            )
        if isinstance(train_data, Path) and path.exists() and path.samefile(train_data):
            raise UserError(f"-o: {printable(path)} is the training data, which would be replaced")
        trial = path.with_name(f".{NAME}.{secrets.token_hex(4)}.partial")
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(f"-o: cannot write {printable(path)}: {error.strerror}") from None
    return path
