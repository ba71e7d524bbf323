"""SmolLM3: every fourth layer has no positions."""

from dataclasses import replace
from typing import Any

from src.model.core.families.switches import Switches, base_switches


def smollm3(config: Any) -> Switches:
    """Return the switches of SmolLM3."""
    ropes = tuple("" if has_rope else None for has_rope in config.no_rope_layers)
    return replace(base_switches(config), ropes=ropes)
