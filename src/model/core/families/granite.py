"""Granite: Llama with scales on embedding, attention, residual and scores."""

from dataclasses import replace
from typing import Any

from src.model.core.families.switches import Switches, base_switches


def granite(config: Any) -> Switches:
    """Return the switches of Granite."""
    return replace(
        base_switches(config),
        scale=config.attention_multiplier,
        embedding_scale=config.embedding_multiplier,
        residual_scale=config.residual_multiplier,
        logit_scale=1 / config.logits_scaling,
    )
