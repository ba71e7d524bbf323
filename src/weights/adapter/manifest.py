"""What a fine-tuned model says of itself in `training.json`."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.files.printable import printable
from src.weights.adapter.json_object import read_json_object

FORMAT_VERSION = 1
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """How the weights want to be prompted; None is the base model's own way."""

    prompt_template: str | None = None
    system_prompt: str | None = None
    base_model: str | None = None
    base_model_fingerprint: str | None = None
    """Of its weights; None in older manifests."""


def read_manifest(folder: Path) -> Manifest:
    """Return what `training.json` says, or an empty manifest if there is none."""
    path = folder / "training.json"
    if not path.exists():
        return Manifest()
    record = read_json_object(path, max_bytes=MAX_BYTES)
    version = record.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise UserError(
            f"training.json: expected format_version {FORMAT_VERSION}, "
            f"found {printable(version, 20)}"
        )
    manifest = Manifest(**{field.name: _text(record, field.name) for field in fields(Manifest)})
    if manifest.prompt_template is not None and "{prompt}" not in manifest.prompt_template:
        raise UserError(
            "training.json: expected a prompt_template that holds {prompt}, "
            f"found {printable(manifest.prompt_template)!r}"
        )
    return manifest


def _text(record: dict[str, Any], key: str) -> str | None:
    value = record.get(key)
    if value is not None and not isinstance(value, str):
        raise UserError(f"training.json: {key} must be text, found {type(value).__name__}")
    try:
        (value or "").encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no tokenizer takes
        raise UserError(f"training.json: {key} is not valid Unicode text") from None
    return value
