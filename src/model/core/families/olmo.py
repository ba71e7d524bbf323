"""OLMo 2 and 3: norms after each part of a layer, and over all queries and all keys."""

from dataclasses import replace
from typing import Any

from src.model.core.families.switches import NormNames, Switches, base_switches


def olmo2(config: Any) -> Switches:
    """Return the switches of OLMo 2."""
    norms = NormNames(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
    return replace(base_switches(config), norms=norms)


def olmo3(config: Any) -> Switches:
    """Return the switches of OLMo 3, whose windowed layers have a rotation of their own."""
    return replace(olmo2(config), ropes=tuple(config.layer_types))
