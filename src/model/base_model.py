"""The base model in memory, in the precision of the hardware or in 4-bit."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D
from transformers.utils.logging import disable_progress_bar
from transformers.utils.quantization_config import Mxfp4Config

from src.errors import UserError
from src.files.printable import printable
from src.model.partition import Partition
from src.model.shape import read_config
from src.model.transformers_attention import ISOLATED
from src.out_of_memory import is_out_of_memory

ISOLATED_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Architectures whose layers in transformers can run our own attention."""


def is_isolated(model_type: str) -> bool:
    """Whether our own attention serves this architecture."""
    return model_type in ISOLATED_TYPES


def load_base_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | None,
    in_4bit: bool = False,
    partition: Partition | None = None,
) -> Any:
    """Load the base model, or a part of it, all frozen; with no device, DeepSpeed places it."""
    disable_progress_bar()
    config = read_config(folder)
    model_type = config.get("model_type", "")
    options: dict[str, Any] = {}
    quantized = config.get("quantization_config") or {}
    if quantized.get("quant_method") == "mxfp4":
        if in_4bit:
            raise UserError(
                "base model: expected none of peft_method=qlora and BASE_MODEL_IN_4BIT for weights "
                "in MXFP4, whose experts are unpacked to the precision of the hardware; found one"
            )
        options["quantization_config"] = Mxfp4Config(dequantize=True)
    elif in_4bit and not quantized:  # else it is in 4-bit already
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if device is not None:
        options["device_map"] = {"": device}
    load = AutoModelForCausalLM.from_pretrained if partition is None else partition.load
    try:
        model: Any = load(
            folder,
            dtype=dtype,
            # Transformers knows which of the others cannot take sdpa.
            attn_implementation=ISOLATED if is_isolated(model_type) else None,
            local_files_only=True,
            **options,
        )
    except Exception as error:  # whatever an architecture raises
        if is_out_of_memory(error):
            raise
        raise UserError(cannot_run(model_type, "load", error)) from error
    module: Any
    for module in model.modules():
        # On some CPUs, 4-bit layers repack their weights for inference and take only some shapes.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if getattr(module, "compute_dtype", None) is not None:
            module.compute_dtype = dtype  # not what those who made 4-bit of it had
    model.requires_grad_(False)
    model.config.use_cache = False
    model.generation_config.do_sample = False
    model.generation_config.temperature = None
    model.generation_config.top_p = None
    return model


def cannot_run(model_type: str, what: str, error: Exception) -> str:
    """Return the sentence for an architecture that fails in transformers' own code."""
    reason = printable(next(iter(str(error).splitlines()), ""), 200)
    return (
        f"base model: transformers {version('transformers')} cannot {what} this {model_type}: "
        f"{type(error).__name__}: {reason}"
    )


def linear_modules(model: nn.Module) -> dict[str, Any]:
    """Return the linear layers of the base model by name, 4-bit ones and GPT-2's Conv1D too."""
    return {name: m for name, m in model.named_modules() if _is_linear(m)}


def _is_linear(module: nn.Module) -> bool:
    # Some routers of experts are such layers by class, and return something else.
    return isinstance(module, nn.Linear | Conv1D) and "Router" not in type(module).__name__


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (out_features, in_features) of every linear layer, 4-bit ones too."""
    return {
        name: (m.nf, m.nx) if isinstance(m, Conv1D) else (m.out_features, m.in_features)
        for name, m in linear_modules(model).items()
    }


def dense_weight(layer: Any) -> torch.Tensor:
    """Return the weight (out_features, in_features) of a linear layer, 4-bit ones dequantised."""
    weight = layer.weight
    if getattr(weight, "quant_state", None) is None:
        return weight
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    return dequantize_bnb_weight(weight).to(layer.compute_dtype)


def keep_dequantized(model: nn.Module) -> None:
    """Replace the 4-bit layers by plain ones that hold the same numbers, for speed."""
    for name, module in linear_modules(model).items():
        if getattr(module.weight, "quant_state", None) is None:
            continue
        with torch.device("meta"):
            plain = nn.Linear(module.in_features, module.out_features, bias=False)
        plain.weight = nn.Parameter(dense_weight(module), requires_grad=False)
        plain.bias = module.bias
        model.set_submodule(name, plain)


def decoder_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """Return the layers that can be recomputed, in the order in which they run."""
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def recompute_layers(model: nn.Module, count: int) -> None:
    """Have the first `count` layers keep only their input (Chen et al. 2016), and no others.

    The first ones, because by the time they run again the others' activations are gone. Nothing is
    recomputed in an architecture that cannot.
    """
    if not model.supports_gradient_checkpointing:
        return
    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    for number, layer in enumerate(decoder_layers(model)):
        layer.gradient_checkpointing = number < count
