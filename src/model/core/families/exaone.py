"""EXAONE 4: norms after each part of a layer; in hybrid models only windowed layers rotate."""

from dataclasses import replace
from typing import Any

from src.model.core.families.olmo import olmo2
from src.model.core.families.switches import Switches


def exaone4(config: Any) -> Switches:
    """Return the switches of EXAONE 4."""
    switches = olmo2(config)
    if config.sliding_window is None:
        return switches
    ropes = tuple(None if window is None else "" for window in switches.windows)
    return replace(switches, ropes=ropes)
