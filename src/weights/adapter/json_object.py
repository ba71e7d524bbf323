"""Read a small JSON object from a file that a stranger may have written."""

import json
from pathlib import Path
from typing import Any, NoReturn

from src.errors import UserError


def read_json_object(path: Path, *, max_bytes: int) -> dict[str, Any]:
    """Return the file's JSON object, in which no key stands twice and every number is one."""
    name = path.name
    if not path.is_file():
        raise UserError(f"{name}: the file is missing")
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UserError(f"{name}: expected at most {max_bytes:,} bytes, found more")
    try:
        # Decoded here: json would take bytes for UTF-16 or UTF-32 too.
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise UserError(f"{name}: the JSON is nested too deep") from None
    except ValueError as error:
        reason = str(error) if isinstance(error, UserError) else "it is not valid JSON"
        raise UserError(f"{name}: {reason}") from None
    if not isinstance(value, dict):
        raise UserError(f"{name}: expected a JSON object, found {type(value).__name__}")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise UserError("a key stands in it twice")
    return unique


def _refuse_constant(constant: str) -> NoReturn:
    raise UserError(f"{constant} is not a number that JSON knows")
