"""What a safetensors file holds, by its header: no tensor is read, and torch is not imported."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from src.errors import UserError
from src.files.printable import printable

MAX_HEADER_BYTES = 100_000_000
"""The most that the library takes."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's dtype as safetensors writes it, such as BF16, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_tensor_infos(
    path: Path, *, max_header_bytes: int = MAX_HEADER_BYTES
) -> dict[str, TensorInfo]:
    """Return the file's tensors by name; raises UserError for a file that is not complete."""
    if not path.is_file():
        raise UserError(f"{path.name}: the file is missing")
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    try:
        # A header of a million tensors keeps the library busy for half a minute.
        if header_bytes > max_header_bytes:
            raise SafetensorError(f"a header of {header_bytes:,} bytes")
        with safe_open(path, framework="numpy") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {
                name: TensorInfo(part.get_dtype(), tuple(part.get_shape()))
                for name, part in slices.items()
            }
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise UserError(
            f"{path.name}: expected a complete safetensors file, found {path.stat().st_size:,} "
            f"bytes that are damaged or cut off ({printable(reason, 120)})"
        ) from None
