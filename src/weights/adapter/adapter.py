"""Read a fine-tuned adapter and prove that it fits the base model, without loading a tensor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.errors import UserError
from src.files.printable import printable
from src.weights.adapter.adapter_config import LoraSettings, read_adapter_config
from src.weights.adapter.manifest import Manifest, read_manifest
from src.weights.adapter.safetensors_header import TensorSlice, read_safetensors_header

__all__ = ["AdapterFile", "AdapterModule", "Manifest", "TensorSlice", "read_adapter"]

PREFIX = "base_model.model."
MISFIT = "adapter does not fit this base model"
EXPONENT_BITS = {
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
"""A number with all these bits set is infinite or not a number."""
BLOCK_NUMBERS = 1 << 22


@dataclass(frozen=True)
class AdapterModule:
    """The update of one linear module: scale * lora_B @ lora_A."""

    lora_A: TensorSlice  # (rank, in_features)
    lora_B: TensorSlice  # (out_features, rank)
    scale: float
    rank: int


@dataclass(frozen=True)
class AdapterFile:
    """A checked adapter: every tensor it has fits, and it has every tensor it needs."""

    path: Path
    modules: dict[str, AdapterModule]
    """By the module's name in the base model, such as `model.layers.0.self_attn.q_proj`."""
    manifest: Manifest


def read_adapter(folder: Path, linear_shapes: Mapping[str, tuple[int, int]]) -> AdapterFile:
    """Return the folder's adapter for a base model with these (out_features, in_features)."""
    manifest = read_manifest(folder)
    settings = read_adapter_config(folder)
    path = folder / "adapter_model.safetensors"
    tensors = read_safetensors_header(path)
    targets = sorted(
        module
        for module in linear_shapes
        if (
            any(name in tensors for name in _tensor_names(module))
            if settings.tensors_tell_targets
            else settings.targets(module)
        )
    )
    if not targets:
        raise UserError(f"{MISFIT}: target_modules name none of its linear modules")
    _check_names(tensors, targets)
    modules = {module: _fit(module, linear_shapes[module], tensors, settings) for module in targets}
    _check_values(path, modules)
    return AdapterFile(path, modules, manifest)


def _tensor_names(module: str) -> tuple[str, str]:
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _check_names(tensors: Mapping[str, TensorSlice], targets: list[str]) -> None:
    """A tensor too many could replace part of the base model, one too few leave it as it was."""
    expected = {name for module in targets for name in _tensor_names(module)}
    if unexpected := sorted(tensors.keys() - expected):
        hint = ""
        if unexpected[0].endswith(".base_layer.weight"):
            hint = ", it is the base model's own (in PEFT: save_embedding_layers=False)"
        raise UserError(
            f"{MISFIT}: {printable(unexpected[0], 200)}: no such tensor is expected{hint}"
        )
    if missing := sorted(expected - tensors.keys()):
        raise UserError(f"{MISFIT}: {missing[0]}: the tensor is missing")


def _fit(
    module: str,
    shape: tuple[int, int],
    tensors: Mapping[str, TensorSlice],
    settings: LoraSettings,
) -> AdapterModule:
    out_features, in_features = shape
    rank = settings.rank_of(module)
    for name, expected in zip(
        _tensor_names(module), ((rank, in_features), (out_features, rank)), strict=True
    ):
        if tensors[name].shape != expected:
            raise UserError(
                f"{MISFIT}: {name}: expected shape {expected}, found {tensors[name].shape}"
            )
        if tensors[name].dtype not in EXPONENT_BITS:
            raise UserError(
                f"{MISFIT}: {name}: expected dtype {', '.join(EXPONENT_BITS)}, "
                f"found {tensors[name].dtype}"
            )
    lora_a, lora_b = (tensors[name] for name in _tensor_names(module))
    return AdapterModule(lora_a, lora_b, settings.scale_of(module), rank)


def _check_values(path: Path, modules: Mapping[str, AdapterModule]) -> None:
    """Refuse numbers that are not finite, and an adapter that is the base model in disguise."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    has_effect = False
    for module, adapter in modules.items():
        is_zero = [
            _is_zero(data, tensor, name)
            for name, tensor in zip(
                _tensor_names(module), (adapter.lora_A, adapter.lora_B), strict=True
            )
        ]
        has_effect = has_effect or not any(is_zero)
    if not has_effect:
        raise UserError(f"{path.name}: the adapter has no effect, all its updates are zero")


def _is_zero(data: np.ndarray, tensor: TensorSlice, name: str) -> bool:
    """Return whether all numbers are zero, having seen that all are finite."""
    _, exponent = EXPONENT_BITS[tensor.dtype]
    is_zero = True
    for bits in _blocks(data, tensor):
        if ((bits & exponent) == exponent).any():
            raise UserError(f"adapter_model.safetensors: {name}: found a number that is not finite")
        is_zero = is_zero and not (bits << 1).any()  # the bit shifted out is the sign
    return is_zero


def _blocks(data: np.ndarray, tensor: TensorSlice) -> Iterator[np.ndarray]:
    """Yield the tensor's numbers as unsigned integers, a bounded number at a time."""
    dtype, _ = EXPONENT_BITS[tensor.dtype]
    step = BLOCK_NUMBERS * np.dtype(dtype).itemsize
    for start in range(tensor.start, tensor.end, step):
        block = data[start : min(start + step, tensor.end)]
        yield np.frombuffer(block, dtype=np.dtype(dtype).newbyteorder("<"))
