"""Adapters beside the base model: added to a layer's output, never written into its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from src.model.base_model import linear_modules
from src.weights.adapter import AdapterFile
from src.weights.safetensors_header import TensorSlice

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedModule:
    """The update of one linear layer on the device."""

    lora_A: torch.Tensor  # (rank, in_features)
    lora_B: torch.Tensor  # (out_features, rank)
    scale: float


LoadedAdapter = Mapping[str, LoadedModule]


def load_adapter(file: AdapterFile, *, dtype: torch.dtype, device: torch.device) -> LoadedAdapter:
    """Read the tensors of a checked adapter file."""
    data = file.path.read_bytes()

    def tensor(part: TensorSlice) -> torch.Tensor:
        buffer = bytearray(data[part.start : part.end])
        values = torch.frombuffer(buffer, dtype=_DTYPES[part.dtype])
        return values.reshape(part.shape).to(device=device, dtype=dtype)

    return {
        name: LoadedModule(tensor(module.lora_A), tensor(module.lora_B), module.scale)
        for name, module in file.modules.items()
    }


class AdapterSlot:
    """Adds the active adapter to every linear layer's output; without one, nothing is added."""

    def __init__(self, model: nn.Module) -> None:
        self._active: LoadedAdapter = {}
        for name, module in linear_modules(model).items():
            module.register_forward_hook(self._hook(name))

    def activate(self, adapter: LoadedAdapter | None) -> None:
        """Use this adapter from the next forward pass on; None is the bare base model."""
        self._active = adapter or {}

    def _hook(self, name: str) -> Any:
        def add_update(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> Any:
            update = self._active.get(name)
            if update is None:
                return None
            (x,) = inputs
            low = linear(x.to(update.lora_A.dtype), update.lora_A)
            return output + linear(low, update.lora_B) * update.scale

        return add_update


def adapter_bytes_limit(shapes: Mapping[str, tuple[int, int]]) -> int:
    """Return the most bytes that an adapter of this base model may have, in float32 at rank 512."""
    return 2**20 + sum(4 * 512 * (out + in_) for out, in_ in shapes.values())
