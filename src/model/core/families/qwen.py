"""Qwen3.5: three gated delta layers to one with attention, which has a gate; norms that add one.

Those with experts also have one that all tokens share.
"""

from dataclasses import replace
from typing import Any

from src.model.core.families.switches import Switches, base_switches


def qwen3_5(config: Any) -> Switches:
    """Return the switches of Qwen3.5, whose gated delta layers turn nothing."""
    ropes = tuple("" if kind == "full_attention" else None for kind in config.layer_types)
    return replace(base_switches(config), ropes=ropes, adds_one_to_norms=True)
