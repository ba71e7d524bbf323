"""What to write in place of a `BASE_MODEL` that names nothing."""

from difflib import get_close_matches
from pathlib import Path

from src.base_models import KNOWN_MODELS
from src.errors import UserError
from src.files.printable import printable


def unknown_base_model(name: str) -> UserError:
    """Return the error for a name that is no folder, no Hub id and not in the table."""
    shown = printable(name)
    if name.endswith(".gguf"):
        hint = "is a file of llama.cpp; expected a folder with the model as safetensors"
    elif Path(name).is_file():
        hint = f"is a file; expected its folder, {printable(Path(name).parent)}"
    elif name.startswith("~"):
        hint = "is no folder: the shell leaves a ~ in quotes as it is; write $HOME in its place"
    elif name.startswith(("/", "./", "../")):
        hint = "is no folder here"
    else:
        hint = f"is no folder here, no Hub id (owner/name) and none of {', '.join(KNOWN_MODELS)}"
        if close := get_close_matches(name.lower(), KNOWN_MODELS, n=2):
            hint += f"; did you mean {' or '.join(close)}?"
    return UserError(f"BASE_MODEL: {shown!r} {hint}")
