"""OLMo 2 and 3, and EXAONE 4: norms after each part of a layer."""

from dataclasses import replace
from typing import Any

from src.model.core.families.switches import NormNames, Switches, base_switches


def olmo2(config: Any) -> Switches:
    """Return the switches of OLMo 2, whose norms are over all queries and all keys."""
    norms = NormNames(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
    return replace(base_switches(config), norms=norms)


def olmo3(config: Any) -> Switches:
    """Return the switches of OLMo 3, whose windowed layers have a rotation of their own."""
    return replace(olmo2(config), ropes=tuple(config.layer_types))


def exaone4(config: Any) -> Switches:
    """Return the switches of EXAONE 4; in hybrid models only windowed layers rotate."""
    switches = olmo2(config)
    if config.sliding_window is None:
        return switches
    ropes = tuple(None if window is None else "" for window in switches.windows)
    return replace(switches, ropes=ropes)
