"""`-i name=value` on a command line, as the inputs of a request."""

import difflib
import math
import os.path
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.files.printable import printable

EXPECTED = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_PAGE = re.compile(r"https?://(huggingface\.co|github\.com)/.+/blob/")
_OF_HUB = re.compile(r"(?:https?://huggingface\.co/)?(\w[\w.-]*/\w[\w.-]*)/?")
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".json", ".zip", ".safetensors")


def parse_inputs(
    pairs: Sequence[str], properties: Mapping[str, Any], *, may_lack_files: bool = False
) -> dict[str, Any]:
    """Return the inputs with the types of the schema; a file is a `Path`, an empty text none.

    With `may_lack_files` one that is not here, but on another machine, stays a text. Raises
    UserError for a name that does not exist and a value that is no such type.
    """
    inputs: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator:
            example = "prompt=Hello" if "prompt" in properties else "num_train_epochs=3"
            raise UserError(f"-i {printable(pair)}: expected name=value, such as -i {example}")
        if name not in properties:
            raise UserError(
                f"-i {printable(name)}: there is no such input; {_meant(name, properties)}"
            )
        if text or not properties[name].get("nullable"):
            inputs[name] = _value(name, text, properties[name], may_lack_files)
    return inputs


def local_weights(name: str) -> str:
    """Return the source of `-w`: a URL as it is, a path as a server elsewhere will find it."""
    if not os.path.exists(name) and (hint := _from_hub(name)):
        raise UserError(f"-w: {hint}")
    if is_url(name):
        return name
    path = Path(name) if os.path.isdir(name) else _existing_file(name, "-w")
    return str(path.resolve())


def is_url(text: str) -> bool:
    """Tell whether a text is a URL and no path."""
    return "://" in text or text[:5].lower() == "data:"


def _meant(name: str, properties: Mapping[str, Any]) -> str:
    if name in ("model", "base_model"):
        return "the environment variable BASE_MODEL names the base model"
    within = [known for known in properties if name and name in known]
    close = within or difflib.get_close_matches(name, properties, n=1)
    if name == "lr":
        close = ["learning_rate"]
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(properties)}"


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
                return BOOLEANS[text.lower()]
    except (ValueError, KeyError):
        found = printable(text, 40)
        raise UserError(f"-i {name}: expected {EXPECTED[kind]}, found {found!r}") from None
    if schema.get("format") == "uri":
        return _file(name, text, may_lack_files)
    if name == "replicate_weights" and not is_url(text) and not os.environ.get("WEIGHTS_DIR"):
        hint = _from_hub(text) or "a file or folder is given with -w"
        raise UserError(f"-i {name}: expected an http(s) or data: URL; {hint}")
    if text.startswith("@"):
        try:
            where = f"-i {name}: what begins with @ names a file (or stands in one: {name}=@FILE)"
            return _existing_file(text[1:], where).read_text("utf-8")
        except UnicodeDecodeError:
            raise UserError(
                f"-i {name}: expected a text file in UTF-8, found {printable(text[1:])}"
            ) from None
    return text


def _file(name: str, text: str, may_lack_files: bool) -> Path | str:
    if _PAGE.match(text):
        raw = "resolve" if "huggingface" in text else "raw"
        file = printable(text.replace("/blob/", f"/{raw}/", 1), 200)
        raise UserError(f"{name}: this URL is of a page that shows the file, which is at {file}")
    path = text.removeprefix("@")
    if is_url(text) or (may_lack_files and not os.path.isfile(path)):
        return text
    return _existing_file(path, name)


def _existing_file(name: str, where: str) -> Path:
    # Unlike a Path, os.path takes names of any length.
    if os.path.isdir(name):
        raise UserError(f"{where}: expected a file, found the folder {printable(name)}")
    if not os.path.isfile(name):
        hint = "; write $HOME in place of a ~ in quotes" if name.startswith("~") else ""
        raise UserError(f"{where}: there is no file {printable(name) or 'without a name'}{hint}")
    return Path(name)


def _from_hub(name: str) -> str:
    """Return what to do about a name that is, as far as can be seen, one of the Hub; else none."""
    found = _OF_HUB.fullmatch(name)
    if found is None or name.endswith(_ARCHIVES):
        return ""
    return (
        f"{printable(name)} is no file here; weights of the Hub are fetched first: "
        f"hf download {found[1]} --local-dir FOLDER, then -w FOLDER"
    )
