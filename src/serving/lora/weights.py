"""Adapters in memory, as they were read from their file."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from safetensors import safe_open

from src.errors import UserError
from src.settings import MAX_RANK
from src.weights.adapter.adapter import AdapterFile

MAX_NUMBER = 65_504.0
"""The largest of float16; trained numbers are hardly over one, and far larger ones overflow."""


@dataclass(frozen=True, eq=False)
class LoadedModule:
    """The update of one linear layer: lora_B @ lora_A."""

    lora_A: torch.Tensor  # (rank, in_features)
    lora_B: torch.Tensor  # (out_features, rank), the scale is in it


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter on the host, ready to be copied into a slot of the device."""

    key: str
    """Known by its content: two adapters with one key are one adapter."""
    modules: Mapping[str, LoadedModule]

    @property
    def max_rank(self) -> int:
        """The rank that a slot must have room for."""
        return max(len(module.lora_A) for module in self.modules.values())

    @cached_property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        tensors = [t for m in self.modules.values() for t in (m.lora_A, m.lora_B)]
        return sum(tensor.nbytes for tensor in tensors)


def load_adapter(file: AdapterFile, *, dtype: torch.dtype, key: str) -> LoadedAdapter:
    """Read the tensors of a checked adapter file, whose content has this key.

    Raises UserError for numbers that are not finite, and for an adapter that does nothing, or too
    much, in numbers of this dtype.
    """

    def load(name: str, scale: float = 1) -> torch.Tensor:
        values = tensors.get_tensor(name)
        if scale != 1:
            values = values.float() * scale
        low, high = (float(end) for end in torch.aminmax(values))
        if not max(-low, high) <= MAX_NUMBER:  # neither is a NaN
            raise UserError(
                f"{file.path.name}: {name}: expected finite numbers up to {MAX_NUMBER:,.0f}, "
                f"scale included, found {max(-low, high):.3g}"
            )
        return values.to(dtype, copy=True)  # the tensor of the file is a view of it

    with safe_open(file.path, framework="pt") as tensors:
        modules = {
            name: LoadedModule(load(module.lora_A), load(module.lora_B, module.scale))
            for name, module in file.modules.items()
        }
    if not any(module.lora_A.any() and module.lora_B.any() for module in modules.values()):
        raise UserError(
            f"{file.path.name}: the adapter has no effect, all its updates are zero in {dtype}"
        )
    return LoadedAdapter(key, modules)


def adapter_bytes_limit(shapes: Mapping[str, tuple[int, int]]) -> int:
    """Return the most bytes that an adapter of this base model may have: float32, largest rank."""
    return 2**20 + sum(4 * MAX_RANK * (out + in_) for out, in_ in shapes.values())
