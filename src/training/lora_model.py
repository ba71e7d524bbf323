"""The base model with a new adapter, made ready to be trained."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from src.environment import cache_folder
from src.errors import UserError
from src.model.adapter import (
    adapter_parameters,
    attach_adapter,
    has_stacked_experts,
    left_out,
    resolve_target_modules,
)
from src.model.base_model import keep_dequantized, load_base_model
from src.model.core.compiled import keep_code_in
from src.model.core.decoder import open_decoder
from src.model.isolation import find_neighbour_effect
from src.model.loss import SummedLoss
from src.training.deepspeed_engine import build_deepspeed_config
from src.training.plan.plan import TrainingPlan


@dataclass(frozen=True)
class LoraModel:
    """What a run trains."""

    model: Any
    loss: SummedLoss
    target_modules: list[str]
    """The names of the adapted layers."""
    adapter: list[tuple[str, nn.Parameter]]
    """The LoRA matrices by their names in a PEFT adapter file."""
    sharding: HfDeepSpeedConfig | None
    """Set under ZeRO-3. Only a weak reference to it tells transformers, while it lives, to load
    this rank's share of the weights, and to generate until every rank is at its end."""


def adapter_line(model: Any, target_modules: list[str]) -> str:
    """Return which layers are adapted, and which could not be."""
    line = f"adapter: {', '.join(target_modules)}"
    if refused := left_out(model):
        line += (
            f"; not {', '.join(sorted(refused))}, which PEFT does not adapt in this architecture"
        )
    if has_stacked_experts(model):
        line += "; not the experts, whose matrices are stacked in one tensor"
    return line


def try_sharing_rows(loss: SummedLoss, log: Callable[[str], None]) -> None:
    """Give each example a pass of its own where it would see others; log why.

    Under ZeRO-3 all ranks call it together, once there is an engine.
    """
    effect = find_neighbour_effect(loss.model)
    loss.shares_rows = effect is None
    if effect:
        log(
            f"one example a pass: {loss.model.config.model_type} cannot read several in one row, "
            f"{effect}"
        )


def load_lora_model(
    plan: TrainingPlan,
    device: torch.device,
    *,
    log: Callable[[str], None],
) -> LoraModel:
    """Load the base model as planned and attach the adapter; log what makes it slow."""
    settings = plan.settings
    sharding = HfDeepSpeedConfig(build_deepspeed_config(plan)) if plan.zero_stage == 3 else None
    model = load_base_model(
        Path(settings.base_model_dir),
        dtype=plan.resources.dtype,
        device=None if sharding else device,
        in_4bit=settings.peft_method == "qlora",
    )
    if plan.keeps_dequantized:
        keep_dequantized(model)
    target_modules = resolve_target_modules(model, settings.lora_target_modules)
    log(adapter_line(model, target_modules))
    attach_adapter(
        model,
        target_modules=target_modules,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        seed=settings.seed,
    )
    loss = SummedLoss(model, is_sharded=sharding is not None)
    # Under ZeRO-3 a layer's weights are there only while its own forward runs.
    reason = "ZeRO-3 shares out its weights" if sharding else loss.use_decoder()
    if reason:
        log(f"this base model trains in transformers' own layers: {reason}")
    if loss.decoder or loss.is_isolated:
        decoder = loss.decoder or open_decoder(model)
        if not isinstance(decoder, str) and (line := decoder.prove_attention()):
            log(line)
    if plan.base_weights == "float8":
        if loss.decoder is None:
            raise UserError(f"BASE_WEIGHTS: expected none, found 'fp8': {reason}")
        log(loss.decoder.hold_in_float8(for_training=True))
    loss.recompute(plan.num_recomputed)
    model.train()
    if reason is None and plan.eager_reason is None:
        keep_code_in(cache_folder(os.environ) / "compiled")
        if why := loss.compile_layers():
            log(f"the layers are not compiled: {why}")
    if reason and not sharding:
        try_sharing_rows(loss, log)
    return LoraModel(model, loss, target_modules, list(adapter_parameters(model)), sharding)
