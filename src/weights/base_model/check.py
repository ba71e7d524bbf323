"""Is a folder in Hugging Face layout complete?"""

import json
import re
from pathlib import Path

from src.errors import UserError
from src.files.printable import printable
from src.files.tensor_file import read_tensor_infos

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def check_complete(folder: Path) -> None:
    """Prove that a folder holds a complete base model in Hugging Face layout.

    Raises UserError that names the file that is missing, damaged or cut off.
    """
    check_readable(folder)
    if (folder / "model.safetensors.index.json").is_file():
        names = list_shards(folder)
    elif (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    else:
        found = "pytorch_model.bin only" if list(folder.glob("*.bin")) else "none"
        raise UserError(
            f"base model {folder.name}: expected weights in model.safetensors, found {found}"
        )
    for name in names:
        try:
            read_tensor_infos(folder / name)
        except UserError as error:
            raise UserError(f"base model {folder.name}: {error}") from None


def check_readable(folder: Path) -> None:
    """Prove that a folder holds what a base model's text and sizes are read with."""
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"base model {folder.name}: expected a config.json, found none")
    try:
        json.loads(config.read_text())
    except (ValueError, RecursionError):
        raise UserError(f"base model {folder.name}: config.json is not valid JSON") from None
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"base model {folder.name}: expected a tokenizer "
            f"({' or '.join(TOKENIZER_FILES)}), found none"
        )


def list_shards(folder: Path) -> list[str]:
    """Return the names of the weights' files; raises UserError for an index that names others."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        names = sorted(set(index["weight_map"].values()))
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"base model {folder.name}: model.safetensors.index.json is not a valid index"
        ) from None
    for name in names:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise UserError(
                f"base model {folder.name}: the index names {printable(name)!r}, "
                "which is no safetensors file"
            )
    return names
