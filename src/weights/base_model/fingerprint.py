"""Which base model a folder holds, without reading all of its weights."""

import hashlib
from pathlib import Path

SMALL_FILES = ("config.json", "tokenizer*", "chat_template*")
"""Read completely: what the model is, and how it reads text."""
NUM_BLOCKS = 16
BLOCK_BYTES = 64 * 2**10


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
