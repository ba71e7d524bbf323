"""Read a fine-tuned adapter and prove that it fits the base model, without loading a tensor."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from src.errors import UserError
from src.files.printable import printable
from src.files.tensor_file import TensorInfo, read_tensor_infos
from src.weights.adapter.adapter_config import AdapterConfig, read_adapter_config
from src.weights.adapter.manifest import Manifest, read_manifest
from src.weights.archive.other_files import AS_BASE_MODEL

PREFIX = "base_model.model."
MISFIT = "adapter does not fit this base model"
HINTS = {
    "*.base_layer.weight": "it is the base model's own (in PEFT: save_embedding_layers=False)",
    "*_orig_mod.*": "the model was saved compiled; save it without torch.compile",
    "*.lora_?.default.*": "save the adapter with PEFT's save_pretrained, not as a state_dict",
    "*.language_model.*": "it was learned on a model of images and text; "
    "expected one of this base model",
    "*.lm_head.weight": "the output layer was trained, or its vocabulary resized; " + AS_BASE_MODEL,
    "*.embed_tokens.weight": "the embedding was trained, or its vocabulary resized; "
    + AS_BASE_MODEL,
    "[!b]*": f"names begin with {PREFIX}; save the adapter with PEFT's save_pretrained",
}
"""What to do about a tensor that is not expected, by the pattern of its name; the first counts."""
DTYPES = ("F32", "F16", "BF16")
MAX_HEADER_BYTES = 512 << 10
"""Room for 3,000 tensors; an adapter of 80 layers has 1,120."""


@dataclass(frozen=True)
class AdapterModule:
    """The update of one linear module: scale * lora_B @ lora_A."""

    lora_A: str  # name of a tensor of (rank, in_features)
    lora_B: str  # name of a tensor of (out_features, rank)
    scale: float
    rank: int


@dataclass(frozen=True)
class AdapterFile:
    """An adapter whose tensors all fit the base model, with none missing and none too many.

    Their numbers are not read yet: they may still be infinite, or zero.
    """

    path: Path
    modules: dict[str, AdapterModule]
    """By the module's name in the base model, such as `model.layers.0.self_attn.q_proj`."""
    manifest: Manifest


def read_adapter(folder: Path, linear_shapes: Mapping[str, tuple[int, int]]) -> AdapterFile:
    """Return the folder's adapter for a base model with these (out_features, in_features)."""
    manifest = read_manifest(folder)
    config = read_adapter_config(folder)
    if manifest.base_model is None and isinstance(config.base_model_name_or_path, str):
        manifest = replace(manifest, base_model=config.base_model_name_or_path)
    path = folder / "adapter_model.safetensors"
    tensors = read_tensor_infos(path, max_header_bytes=MAX_HEADER_BYTES)
    targets = sorted(
        module
        for module in linear_shapes
        if (
            any(name in tensors for name in _tensor_names(module))
            if config.tensors_tell_targets
            else config.targets(module)
        )
    )
    if not targets:
        raise UserError(f"{MISFIT}: target_modules name none of its linear modules")
    _check_names(tensors, targets)
    modules = {module: _fit(module, linear_shapes[module], tensors, config) for module in targets}
    return AdapterFile(path, modules, manifest)


def _tensor_names(module: str) -> tuple[str, str]:
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _check_names(tensors: Mapping[str, TensorInfo], targets: list[str]) -> None:
    """A tensor too many could replace part of the base model, one too few leave it as it was."""
    expected = {name for module in targets for name in _tensor_names(module)}
    if unexpected := sorted(tensors.keys() - expected):
        name = unexpected[0]
        hints = (hint for pattern, hint in HINTS.items() if fnmatchcase(name, pattern))
        hint = next(hints, f"expected plain LoRA; else {AS_BASE_MODEL}")
        raise UserError(f"{MISFIT}: {printable(name, 150)}: no such tensor is expected; {hint}")
    if missing := sorted(expected - tensors.keys()):
        raise UserError(f"{MISFIT}: {missing[0]}: the tensor is missing")


def _fit(
    module: str,
    shape: tuple[int, int],
    tensors: Mapping[str, TensorInfo],
    config: AdapterConfig,
) -> AdapterModule:
    out_features, in_features = shape
    rank = config.rank_of(module)
    for name, expected in zip(
        _tensor_names(module), ((rank, in_features), (out_features, rank)), strict=True
    ):
        if tensors[name].shape != expected:
            raise UserError(
                f"{MISFIT}: {name}: expected shape {expected}, found {tensors[name].shape}"
            )
        if tensors[name].dtype not in DTYPES:
            raise UserError(
                f"{MISFIT}: {name}: expected dtype {', '.join(DTYPES)}, found {tensors[name].dtype}"
            )
    return AdapterModule(*_tensor_names(module), config.scale_of(module), rank)
