"""Gemma, Gemma 2 and Gemma 3: norms that add one, and norms around every part of a layer."""

from dataclasses import replace
from typing import Any

from src.model.core.families.switches import NormNames, Switches, base_switches

_AROUND = NormNames(
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def gemma(config: Any) -> Switches:
    """Return the switches of Gemma, whose embedding module scales by itself."""
    return replace(base_switches(config), adds_one_to_norms=True)


def gemma2(config: Any) -> Switches:
    """Return the switches of Gemma 2, whose scores are capped."""
    return replace(
        gemma(config),
        norms=_AROUND,
        scale=config.query_pre_attn_scalar**-0.5,
        score_cap=config.attn_logit_softcapping,
        logit_cap=config.final_logit_softcapping,
    )


def gemma3(config: Any) -> Switches:
    """Return the switches of Gemma 3: five layers with a window and its own rotation to one."""
    switches = replace(gemma2(config), ropes=tuple(config.layer_types))
    # Transformers reads this cap and applies none.
    return replace(switches, score_cap=None)
