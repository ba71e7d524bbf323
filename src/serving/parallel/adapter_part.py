"""The part of an adapter that a rank holds, in one piece of memory, which is sent at once."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.model.partition import Partition
from src.serving.lora.weights import LoadedAdapter, LoadedModule


class AdapterPart(NamedTuple):
    """What `unpack` makes an adapter of."""

    key: str
    names: list[str]
    shapes: list[tuple[int, ...]]
    """Of each module's A and of its B, whose rows and columns have changed places."""
    dtype: torch.dtype
    numbers: np.ndarray  # (bytes,)

    def unpack(self) -> LoadedAdapter:
        """Return the adapter, all of it in one piece of memory."""
        whole = torch.from_numpy(self.numbers).view(self.dtype)
        parts = whole.split([rows * columns for rows, columns in self.shapes])
        tensors = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        pairs = zip(self.names, tensors[::2], tensors[1::2], strict=True)
        return LoadedAdapter(self.key, {name: LoadedModule(a, b.t()) for name, a, b in pairs})


def cut_adapter(adapter: LoadedAdapter, partition: Partition) -> AdapterPart:
    """Return a rank's part of an adapter."""
    tensors: list[Tensor] = []
    for name, module in adapter.modules.items():
        lora_A, lora_B = partition.cut_update(name, module.lora_A, module.lora_B)
        tensors += lora_A, lora_B.t()
    numbers = torch.cat([tensor.flatten() for tensor in tensors])
    shapes = [tuple(tensor.shape) for tensor in tensors]
    as_bytes = numbers.view(torch.uint8).numpy()
    return AdapterPart(adapter.key, [*adapter.modules], shapes, numbers.dtype, as_bytes)
