"""The base model with a new adapter, made ready to be trained."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from src.model.adapter import adapter_parameters, attach_adapter, resolve_target_modules
from src.model.base_model import keep_dequantized, load_base_model, training_dtype
from src.model.fast_path import use_fast_path
from src.model.loss import SummedLoss
from src.model.recompute import recompute_layers
from src.training.deepspeed_config import build_deepspeed_config
from src.training.deepspeed_engine import gather_adapter
from src.training.plan.plan import TrainingPlan


@dataclass(frozen=True)
class LoraModel:
    """What a run trains."""

    model: Any
    loss: SummedLoss
    target_modules: list[str]
    """The names of the adapted layers."""
    adapter: list[tuple[str, nn.Parameter]]
    is_sharded: bool
    """Whether each rank holds only a share of the weights."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The adapter's weights."""
        return [parameter for _, parameter in self.adapter]

    def gather_adapter(self) -> dict[str, Tensor]:
        """Return the whole adapter on the CPU; every rank takes part."""
        return gather_adapter(self.adapter, is_sharded=self.is_sharded)


def load_lora_model(
    plan: TrainingPlan,
    device: torch.device,
    *,
    fast_path_off: Collection[str],
    say: Callable[[str], None],
) -> LoraModel:
    """Load the base model as planned and attach the adapter; say what makes it fast."""
    settings = plan.settings
    # While this object lives, transformers loads only each rank's share of the base model.
    is_sharded = plan.zero_stage == 3
    sharing = HfDeepSpeedConfig(build_deepspeed_config(plan)) if is_sharded else None
    model = load_base_model(
        Path(settings.base_model_dir),
        dtype=training_dtype(device),
        device=None if sharing else device,
        in_4bit=settings.peft_method == "qlora",
    )
    if plan.keeps_dequantized:
        keep_dequantized(model)
    target_modules = resolve_target_modules(model, settings.lora_target_modules)
    attach_adapter(
        model,
        target_modules=target_modules,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        seed=settings.seed,
    )
    # Under ZeRO-3 a layer's weights are there only while its own forward runs.
    if sharing:
        say("fast path: only attention is on: ZeRO-3 shares out the weights")
    else:
        for line in use_fast_path(model, off=fast_path_off):
            say(line)
    recompute_layers(model, plan.num_recomputed)
    model.train()
    loss = SummedLoss(model, fuses_head=not is_sharded)
    adapter = list(adapter_parameters(model))
    return LoraModel(model, loss, target_modules, adapter, is_sharded)
