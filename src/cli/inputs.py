"""`-i name=value` on a command line, as the inputs of a request."""

import difflib
import math
import os.path
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.files.printable import printable


def parse_inputs(
    pairs: Sequence[str], properties: Mapping[str, Any], *, may_lack_files: bool = False
) -> dict[str, Any]:
    """Return the inputs with the types of the schema; a file is a `Path`.

    With `may_lack_files` one that is not here, but on another machine, stays a text. Raises
    UserError for a name that does not exist and a value that is no such type.
    """
    inputs: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator:
            raise UserError(f"-i {printable(pair)}: expected name=value")
        if name not in properties:
            close = difflib.get_close_matches(name, properties, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(properties)}"
            raise UserError(f"-i {printable(name)}: there is no such input; {hint}")
        inputs[name] = _value(name, text, properties[name], may_lack_files)
    return inputs


def _value(name: str, text: str, schema: Mapping[str, Any], may_lack_files: bool) -> Any:
    kind = schema.get("type", "string")
    try:
        match kind:
            case "integer":
                return int(text)
            case "number":
                number = float(text)
                if math.isfinite(number):  # JSON has no other numbers
                    return number
                raise ValueError
            case "boolean":
                return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except (ValueError, KeyError):
        expected = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
        found = printable(text, 40)
        raise UserError(f"-i {name}: expected {expected[kind]}, found {found!r}") from None
    if schema.get("format") == "uri":
        is_url = text.startswith(("http://", "https://", "data:"))
        path = text.removeprefix("@")
        if is_url or (may_lack_files and not os.path.isfile(path)):
            return text
        return existing_file(path, f"-i {name}")
    if text.startswith("@"):
        try:
            where = f"-i {name}: what begins with @ names a file"
            return existing_file(text[1:], where).read_text("utf-8")
        except UnicodeDecodeError:
            raise UserError(
                f"-i {name}: expected a text file in UTF-8, found {printable(text[1:])}"
            ) from None
    return text


def existing_file(name: str, where: str) -> Path:
    """Return the path of a file; raises UserError if there is none."""
    # Unlike a Path, it takes names of any length.
    if not os.path.isfile(name):
        raise UserError(f"{where}: there is no file {printable(name)}")
    return Path(name)
