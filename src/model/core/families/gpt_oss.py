"""gpt-oss: experts with limited gates, sinks in its attention, a window in every other layer."""

from dataclasses import replace
from typing import Any

from src.model.core.families.switches import Switches, base_switches


def gpt_oss(config: Any) -> Switches:
    """Return the switches of gpt-oss."""
    return replace(base_switches(config), doubles_rope=False)
