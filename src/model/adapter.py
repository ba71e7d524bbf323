"""The trained part: LoRA matrices attached to the base model, and saved as a PEFT adapter."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from src.model.base_model import linear_modules
from src.model.shape import choose_targets

_PEFT_NAME = "default"


def resolve_target_modules(model: nn.Module, asked: str) -> list[str]:
    """Return the last names of the modules to adapt; `all-linear` is every layer but the head."""
    modules = linear_modules(model)
    head = {name for name, module in modules.items() if module is model.get_output_embeddings()}  # type: ignore[operator]
    return choose_targets(asked, {name.rpartition(".")[2] for name in modules if name not in head})


def attach_adapter(
    model: nn.Module, *, target_modules: list[str], rank: int, alpha: int, dropout: float, seed: int
) -> None:
    """Put new LoRA matrices beside the targeted layers; untrained, they change nothing."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules,
        bias="none",
        task_type="CAUSAL_LM",
    )
    inject_adapter_in_model(config, model, adapter_name=_PEFT_NAME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            # PEFT's matrices are float32; DeepSpeed keeps its own float32 copy of them.
            parameter.data = parameter.data.to(model.dtype)  # type: ignore[arg-type]


def adapter_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the LoRA matrices with their names in a PEFT adapter file."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield f"base_model.model.{name.replace(f'.{_PEFT_NAME}.', '.')}", parameter


def save_adapter(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    *,
    base_model: str,
    target_modules: list[str],
    rank: int,
    alpha: int,
    dropout: float,
) -> None:
    """Write a standard PEFT adapter.

    Raises FloatingPointError if a value is not finite.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise FloatingPointError(f"the adapter is not finite: {name}")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": target_modules,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
