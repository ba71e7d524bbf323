"""The trained part: LoRA matrices attached to the base model, and saved as a PEFT adapter."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from src.model.base_model import linear_modules
from src.model.shape import choose_targets

_PEFT_NAME = "default"


def resolve_target_modules(model: nn.Module, asked: str) -> list[str]:
    """Return the last names of the modules to adapt; `all-linear` is every layer but the head.

    What PEFT cannot adapt is not among them; see `left_out`.
    """
    return choose_targets(asked, _layer_names(model) - left_out(model))


def left_out(model: nn.Module) -> set[str]:
    """Return the last names of linear layers that PEFT cannot adapt in this architecture."""
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    names = _layer_names(model)
    config = _lora_config(sorted(names), rank=1, alpha=1, dropout=0.0)
    # It reads the names of some as those of experts, which are no layers but stacked matrices.
    convert_peft_config_for_transformers(config, model, None)
    refused = names - set(config.target_modules)  # type: ignore[arg-type]
    layers = linear_modules(model)
    refused |= {name.rpartition(".")[2] for name, _ in model.named_modules() if name not in layers}
    refused &= names
    for name in names - refused:
        try:
            _check_lora_target_modules_mamba(config, model, name)
        except ValueError:
            refused.add(name)
    return refused


def has_stacked_experts(model: nn.Module) -> bool:
    """Return whether experts are matrices in one tensor, which no LoRA layer adapts."""
    return any(p.dim() == 3 and "experts" in name for name, p in model.named_parameters())


def _layer_names(model: nn.Module) -> set[str]:
    head = model.get_output_embeddings()  # type: ignore[operator]
    modules = linear_modules(_text_layers(model))
    return {name.rpartition(".")[2] for name, module in modules.items() if module is not head}


def _text_layers(model: nn.Module) -> nn.Module:
    """Return what text goes through: what reads pictures would never learn from it."""
    return model.get_decoder()  # type: ignore[operator]


def attach_adapter(
    model: nn.Module, *, target_modules: list[str], rank: int, alpha: int, dropout: float, seed: int
) -> None:
    """Put new LoRA matrices beside the targeted layers; untrained, they change nothing."""
    from peft import inject_adapter_in_model

    torch.manual_seed(seed)
    config = _lora_config(target_modules, rank, alpha, dropout)
    inject_adapter_in_model(config, _text_layers(model), adapter_name=_PEFT_NAME)
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


class FlatAdapter(nn.Module):
    """All matrices of an adapter as one flat parameter.

    So an optimizer has one tensor to work on, however many matrices there are. They are views of
    it; in float16, whose small steps would be lost, of a copy of a parameter in float32.
    """

    def __init__(self, named_matrices: Iterable[tuple[str, nn.Parameter]]) -> None:
        super().__init__()
        self._matrices = dict(named_matrices)
        used = flatten(self._matrices.values()).detach()
        self._dtype = used.dtype
        self.flat = nn.Parameter(used.float() if used.dtype == torch.float16 else used)
        self.tie()

    def tie(self) -> None:
        """Give the matrices their memory, wherever that of the flat parameter is by now."""
        self._used = self.flat.data.to(self._dtype)
        for matrix, view in zip(
            self._matrices.values(), self.split(self._used).values(), strict=True
        ):
            matrix.data = view

    def refresh(self) -> None:
        """Give the matrices the numbers that the flat parameter has by now."""
        if self._dtype != self.flat.dtype:
            self._used.copy_(self.flat.data)

    def matrices(self) -> dict[str, Tensor]:
        """Return the matrices as the base model sees them, by their names."""
        return self.split(self._used)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of a flat tensor in the shapes, and by the names, of the matrices."""
        pieces = flat.split([matrix.numel() for matrix in self._matrices.values()])
        return {
            name: piece.view(matrix.shape)
            for (name, matrix), piece in zip(self._matrices.items(), pieces, strict=True)
        }

    def forward(self, gradient: Tensor) -> Tensor:
        """Return a scalar whose gradient by the flat parameter is the given one."""
        return self.flat @ gradient.to(self.flat.dtype)


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Return the elements of all tensors, one after the other."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def copy_to_cpu(named_matrices: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return copies of an adapter's matrices on the CPU.

    Raises FloatingPointError if a value is not finite.
    """
    copies = {name: m.detach().to("cpu", copy=True) for name, m in named_matrices}
    for name, matrix in copies.items():
        if not torch.isfinite(matrix).all():
            raise FloatingPointError(f"the adapter is not finite: {name}")
    return copies


def save_adapter(
    folder: Path,
    tensors: dict[str, Tensor],
    *,
    base_model: str,
    target_modules: list[str],
    rank: int,
    alpha: int,
    dropout: float,
) -> None:
    """Write a standard PEFT adapter."""
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = _lora_config(target_modules, rank, alpha, dropout)
    config.base_model_name_or_path = base_model
    config.inference_mode = True
    # PEFT makes a set of them, whose order differs from process to process.
    config.target_modules = target_modules
    config.save_pretrained(str(folder))


def _lora_config(target_modules: list[str], rank: int, alpha: int, dropout: float) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules,
        bias="none",
        task_type="CAUSAL_LM",
    )
