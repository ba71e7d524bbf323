"""Where each tensor lies in a safetensors file, checked before any library sees the file."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.files.printable import printable
from src.weights.adapter.json_object import parse_json_object

MAX_HEADER_BYTES = 512 << 10
"""Room for 3,000 tensors; an adapter of 80 layers has 1,120."""

BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


@dataclass(frozen=True)
class TensorSlice:
    """One tensor's bytes, from `start` to `end` of the whole file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_safetensors_header(path: Path) -> dict[str, TensorSlice]:
    """Return the file's tensors, which cover its data without a gap or an overlap."""
    name = path.name
    if not path.is_file():
        raise UserError(f"{name}: the file is missing")
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or header_bytes > MAX_HEADER_BYTES:
            raise UserError(
                f"{name}: it is no safetensors file (found {file_bytes:,} bytes that do not begin "
                "with the length of a header)"
            )
        header = file.read(header_bytes)
    if len(header) < header_bytes:
        raise UserError(f"{name}: it is cut off in its header, found {file_bytes:,} bytes")
    if not header.startswith(b"{"):
        raise UserError(f"{name}: it is no safetensors file (its header is no JSON object)")
    entries = parse_json_object(header, f"{name} (header)")
    entries.pop("__metadata__", None)
    data_start = 8 + header_bytes
    tensors = {key: _read_entry(key, entry, data_start, name) for key, entry in entries.items()}
    _check_cover(tensors, data_start, file_bytes, name)
    return tensors


def _read_entry(key: str, entry: Any, data_start: int, name: str) -> TensorSlice:
    where = f"{name}: tensor {printable(key)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"{where}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise UserError(f"{where}: unknown dtype {printable(dtype, 20)}")
    if not _are_counts(shape) or len(shape) > 8 or not _are_counts(offsets) or len(offsets) != 2:
        raise UserError(f"{where}: its shape or data_offsets are not lists of whole numbers")
    start, end = offsets
    if 8 * (end - start) != prod(shape) * BITS[dtype]:
        raise UserError(
            f"{where}: expected {prod(shape) * BITS[dtype] // 8:,} bytes for {dtype} "
            f"{printable(shape, 60)}, found {end - start:,}"
        )
    return TensorSlice(dtype, tuple(shape), data_start + start, data_start + end)


def _are_counts(value: Any) -> bool:
    # type, not isinstance: True is an int too. The bound keeps arithmetic and messages short.
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in value)


def _check_cover(
    tensors: dict[str, TensorSlice], data_start: int, file_bytes: int, name: str
) -> None:
    position = data_start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != position:
            raise UserError(f"{name}: its tensors overlap or leave holes")
        position = tensor.end
    if position != file_bytes:
        raise UserError(f"{name}: found {file_bytes:,} bytes, expected {position:,}")
