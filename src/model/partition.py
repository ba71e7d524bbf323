"""The part of a base model that one of several ranks holds: some heads, some inner features.

Each rank's is a narrower model of the same family, whose layers' outputs add up to those of the
whole one (Megatron-LM, Shoeybi et al. 2019). Embedding, norms, routers and head are on all ranks.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from src.errors import UserError

SPLIT_SIZES = {
    "num_attention_heads": "heads",
    "num_key_value_heads": "key/value heads",
    "intermediate_size": "inner features",
    "moe_intermediate_size": "inner features of experts",
    "shared_expert_intermediate_size": "inner features of a shared expert",
}
"""What a configuration calls the sizes that are split."""
BY_OUTPUT = re.compile(r"\.(q|k|v|qkv|gate|up|gate_up)_proj$|\.w[13]$")
BY_INPUT = re.compile(r"\.(o|down)_proj$|\.w2$")
"""The linear layers that are split by their outputs or inputs, experts' too."""


@dataclass(frozen=True)
class Partition:
    """Which part of a base model a rank holds."""

    rank: int
    num_ranks: int
    qkv_sizes: tuple[int, ...]
    """Outputs of query, key and value, all heads of the whole model."""

    @classmethod
    def of(cls, folder: Path, *, rank: int, num_ranks: int) -> "Partition":
        """Return the part of a base model; raises UserError for one that cannot be split."""
        config = read_text_config(folder)
        if getattr(config, "quantization_config", None):
            raise UserError(
                "TENSOR_PARALLEL: expected a base model in 16 or 32 bits, whose layers can be "
                "split; found one that is quantized"
            )
        if num_ranks not in possible_sizes(config, num_ranks):
            found = {label: getattr(config, name, None) for name, label in SPLIT_SIZES.items()}
            sizes = ", ".join(f"{size:,} {label}" for label, size in found.items() if size)
            raise UserError(
                f"TENSOR_PARALLEL: expected a number that divides what a layer has, {sizes}; "
                f"found {num_ranks}"
            )
        num_key_value_heads = config.num_key_value_heads
        rows = config.num_attention_heads, num_key_value_heads, num_key_value_heads
        part = cls(rank, num_ranks, tuple(number * head_size(config) for number in rows))
        if (name := part.find_whole(folder)) is not None:
            raise UserError(
                f"TENSOR_PARALLEL: expected 1 for this {config.model_type}, whose {name} cannot be "
                f"split; found {num_ranks}"
            )
        return part

    def find_whole(self, folder: Path) -> str | None:
        """Return what in a base model would be split, and cannot be; None where all can."""
        whole, part = build_empty(folder), self.build_empty(folder)
        for name, module in whole.get_decoder().named_modules(prefix="model"):
            # Some routers are linear layers by class; each rank has them whole.
            is_linear = isinstance(module, nn.Linear) and "Router" not in type(module).__name__
            if is_linear and not (BY_OUTPUT.search(name) or BY_INPUT.search(name)):
                return name
        sizes = {name: tensor.shape for name, tensor in part.state_dict().items()}
        for name, tensor in whole.state_dict().items():
            # Transformers stacks experts, which a file names one by one.
            is_stacked = ".experts." in name
            if not is_stacked and self.cut(name, tensor, tuple(tensor.shape)).shape != sizes[name]:
                return name
        return None

    def all_ranks(self) -> "list[Partition]":
        """Return the parts of all ranks, in their order."""
        return [replace(self, rank=rank) for rank in range(self.num_ranks)]

    def load(self, folder: Path, **options: Any) -> Any:
        """Return the narrower model; of what is split, no more is read than this part."""
        empty = self.build_empty(folder)
        files = [safe_open(folder / name, framework="pt") for name in weight_files(folder)]
        tensors = {name: _Lazy(self, file, name) for file in files for name in file.keys()}  # noqa: SIM118
        return type(empty).from_pretrained(None, config=empty.config, state_dict=tensors, **options)

    def build_empty(self, folder: Path) -> Any:
        """Return the narrower model without weights."""
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        text = config.get_text_config()
        text.head_dim = head_size(text)
        for name in SPLIT_SIZES:
            if getattr(text, name, None):
                setattr(text, name, getattr(text, name) // self.num_ranks)
        return build_empty(config)

    def cut(self, name: str, tensor: Any, shape: tuple[int, ...]) -> Tensor:
        """Return this rank's part of a parameter of that name in the whole model.

        `tensor` may be anything that slices as a tensor does.
        """
        module, _, kind = name.rpartition(".")
        if BY_OUTPUT.search(module):
            return self._cut_outputs(module, tensor, shape)
        if BY_INPUT.search(module):
            if kind == "weight":
                return tensor[:, self._own(0, shape[1])]
            return tensor[:] if self.rank == 0 else torch.zeros_like(tensor[:])  # added once
        return tensor[:] if shape else tensor[...]

    def cut_update(self, module: str, lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return this rank's part of an adapter's update of a linear layer, whose sum is its own.

        Shapes are (rank, in features) and (out features, rank).
        """
        if BY_OUTPUT.search(module):
            lora_B = self._cut_outputs(module, lora_B, tuple(lora_B.shape))
        elif BY_INPUT.search(module):
            lora_A = lora_A[:, self._own(0, lora_A.shape[1])]
        return lora_A, lora_B

    def _cut_outputs(self, module: str, tensor: Any, shape: tuple[int, ...]) -> Tensor:
        sizes: tuple[int, ...] = (shape[0],)
        if module.endswith(".qkv_proj"):
            sizes = self.qkv_sizes
        elif module.endswith(".gate_up_proj"):
            sizes = (shape[0] // 2,) * 2
        parts, begin = [], 0
        for size in sizes:
            parts.append(tensor[self._own(begin, size)])
            begin += size
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _own(self, begin: int, size: int) -> slice:
        size //= self.num_ranks
        return slice(begin + self.rank * size, begin + (self.rank + 1) * size)


class _Lazy:
    """A parameter that is read, and cut, when transformers wants it."""

    def __init__(self, partition: Partition, file: Any, name: str) -> None:
        self._partition, self._file, self._name = partition, file, name

    def __getitem__(self, _: Any) -> Tensor:
        whole = self._file.get_slice(self._name)
        part = self._partition.cut(self._name, whole, tuple(whole.get_shape()))
        # Not a view of the file, whose pages would count as this rank's memory.
        return part.clone(memory_format=torch.contiguous_format)


def build_empty(config: Any) -> Any:
    """Return the model of a configuration, or of a folder with one, without weights."""
    if isinstance(config, Path):
        config = AutoConfig.from_pretrained(config, local_files_only=True)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def read_text_config(folder: Path) -> Any:
    """Return the configuration of a base model's language model."""
    return AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()


def head_size(config: Any) -> int:
    """Return the features of a head."""
    known = getattr(config, "head_dim", None)
    return known or config.hidden_size // config.num_attention_heads


def possible_sizes(config: Any, most: int) -> list[int]:
    """Return into how many parts, up to so many, the layers of a configuration can be split."""
    sizes = [getattr(config, name, None) or 0 for name in SPLIT_SIZES]
    return [number for number in range(1, most + 1) if not any(size % number for size in sizes)]


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files that hold a base model's weights."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return ["model.safetensors"]
    return sorted(set(json.loads(index.read_text())["weight_map"].values()))
