"""Adapters in memory, as they were read from their file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from safetensors import safe_open

from src.errors import UserError
from src.settings import MAX_RANK
from src.weights.adapter.adapter import AdapterFile, AdapterModule

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
        return max((len(module.lora_A) for module in self.modules.values()), default=1)

    @cached_property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        return sum(module.lora_A.nbytes + module.lora_B.nbytes for module in self.modules.values())

    def on_device(self, device: torch.device) -> Mapping[str, LoadedModule]:
        """Return its modules there; those that `load_adapter` loaded go in one copy."""
        if all(module.lora_A.device == device for module in self.modules.values()):
            return self.modules
        wholes: dict[int, torch.Tensor] = {}

        def copy(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if (whole := wholes.get(storage.data_ptr())) is None:
                whole = torch.empty(0, dtype=tensor.dtype).set_(storage)
                whole = wholes[storage.data_ptr()] = whole.to(device, non_blocking=True)
            return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

        return {
            name: LoadedModule(copy(module.lora_A), copy(module.lora_B))
            for name, module in self.modules.items()
        }


def load_adapter(file: AdapterFile, *, dtype: torch.dtype, key: str) -> LoadedAdapter:
    """Read the tensors of a checked adapter file, whose content has this key.

    Raises UserError for numbers that are not finite, and for an adapter that does nothing, or too
    much, in numbers of this dtype.
    """

    with safe_open(file.path, framework="pt") as tensors:
        names = [name for m in file.modules.values() for name in (m.lora_A, m.lora_B)]
        sizes = [math.prod(tensors.get_slice(name).get_shape()) for name in names]
        # In memory that a GPU reads by itself, they reach it in one copy.
        numbers = torch.empty(sum(sizes), dtype=dtype, pin_memory=torch.cuda.is_available())
        places = dict(zip(names, numbers.split(sizes), strict=True))

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
            return values

        def load_module(module: AdapterModule) -> LoadedModule:
            # Both as they are written to the device: the rows of one rank side by side.
            lora_A, lora_B = load(module.lora_A), load(module.lora_B, module.scale).t().contiguous()
            return LoadedModule(
                places[module.lora_A].view(lora_A.shape).copy_(lora_A),
                places[module.lora_B].view(lora_B.shape).copy_(lora_B).t(),
            )

        modules = {name: load_module(module) for name, module in file.modules.items()}
    if not any(module.lora_A.any() and module.lora_B.any() for module in modules.values()):
        raise UserError(
            f"{file.path.name}: the adapter has no effect, all its updates are zero in {dtype}"
        )
    return LoadedAdapter(key, modules)


def adapter_bytes_limit(shapes: Mapping[str, tuple[int, int]]) -> int:
    """Return the most bytes that an adapter of this base model may have: float32, largest rank."""
    return 2**20 + sum(4 * MAX_RANK * (out + in_) for out, in_ in shapes.values())
