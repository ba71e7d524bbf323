"""Which base model a folder holds, without reading all of its weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

from src.weights.base_model.check import list_weights

SMALL_FILES = ("config.json", "tokenizer*", "chat_template*")
"""Read completely: what the model is, and how it reads text."""
NUM_BLOCKS = 16
BLOCK_BYTES = 64 * 2**10
SAMPLE_BYTES = 64


def fingerprint_base_model(folder: Path) -> str:
    """Return a hash of the small files, and of the size and parts of each file of weights."""
    digest = hashlib.sha256()
    small = {path for pattern in SMALL_FILES for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(small):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        _add_parts(digest, path)
    return digest.hexdigest()


def _add_parts(digest: "hashlib._Hash", path: Path) -> None:
    """Add the header and blocks spread evenly over the file, its beginning and its end included."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        digest.update(file.read(min(header_bytes, size)))
        for number in range(NUM_BLOCKS):
            file.seek(number * max(0, size - BLOCK_BYTES) // (NUM_BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))


def fingerprint_weights(folder: Path) -> str:
    """Return a hash of each tensor's name, shape, and bytes in its middle.

    It is the same however the tensors are spread over files.
    """
    tensors: list[list[Any]] = []
    for name in list_weights(folder):
        with (folder / name).open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
            header.pop("__metadata__", None)
            for tensor, info in header.items():
                start, end = info["data_offsets"]
                file.seek(8 + header_bytes + (start + end) // 2)
                sample = file.read(min(SAMPLE_BYTES, end - (start + end) // 2))
                tensors.append([tensor, info["dtype"], info["shape"], sample.hex()])
    return hashlib.sha256(json.dumps(sorted(tensors)).encode()).hexdigest()
