"""Is a folder in Hugging Face layout complete?"""

import json
import re
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.files.printable import printable
from src.files.tensor_file import read_tensor_infos

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def check_complete(folder: Path) -> None:
    """Prove that a folder holds a complete base model in Hugging Face layout.

    Raises UserError that names the file that is missing, damaged or cut off.
    """
    check_readable(folder)
    for name in list_weights(folder):
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
        settings = json.loads(config.read_text())
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"base model {folder.name}: config.json is not valid JSON")
    _check_precision(settings, folder.name)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"base model {folder.name}: expected a tokenizer "
            f"({' or '.join(TOKENIZER_FILES)}), found none"
        )


def _check_precision(config: dict[str, Any], name: str) -> None:
    """Raise UserError for weights that are quantized in a way that LoRA is not trained on here."""
    found = config.get("quantization_config") or config.get("compression_config")
    if not found or is_bitsandbytes_4bit(config):
        return
    if found.get("quant_method") == "mxfp4":  # which is unpacked when it is loaded
        return
    method = printable(found.get("quant_method") or "an unnamed method", 40)
    method += " 8-bit" if found.get("load_in_8bit") else ""
    raise UserError(
        f"base model {name}: its weights are quantized already, with {method}; "
        "expected the base model in 16 or 32 bits, in MXFP4, or in bitsandbytes 4-bit "
        "(peft_method=qlora makes 4-bit of one that is not)"
    )


def is_bitsandbytes_4bit(config: dict[str, Any]) -> bool:
    """Return whether a config.json says that the weights are 4-bit by bitsandbytes already."""
    found = config.get("quantization_config") or {}
    return bool(found.get("load_in_4bit")) and found.get("quant_method") in (None, "bitsandbytes")


def list_weights(folder: Path) -> list[str]:
    """Return the names of the files with the weights; raises UserError where there are none."""
    if (folder / "model.safetensors.index.json").is_file():
        return list_shards(folder)
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    found = "pytorch_model.bin only" if list(folder.glob("*.bin")) else "none"
    raise UserError(
        f"base model {folder.name}: expected weights in model.safetensors, found {found}"
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
