"""GLM, and those who rotate heads in pairs of neighbours as it does: Helium, ERNIE 4.5."""

from dataclasses import replace
from typing import Any

from src.model.core.families.switches import NormNames, Switches, base_switches


def glm(config: Any) -> Switches:
    """Return the switches of GLM, of Helium and of ERNIE 4.5."""
    return replace(base_switches(config), is_interleaved=True)


def glm4(config: Any) -> Switches:
    """Return the switches of GLM-4, which has norms around every part of a layer."""
    norms = NormNames(
        "input_layernorm",
        "post_self_attn_layernorm",
        "post_attention_layernorm",
        "post_mlp_layernorm",
    )
    return replace(glm(config), norms=norms)
