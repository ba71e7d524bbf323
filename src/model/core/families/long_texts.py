"""Ministral 3 and Phi-3: what they do to positions depends on how far a text goes."""

from dataclasses import replace
from typing import Any

from src.model.core.families.switches import Switches, windowed


def ministral3(config: Any) -> Switches:
    """Return the switches of Ministral 3, whose queries grow with their position."""
    rope = config.rope_parameters
    growth = rope["llama_4_scaling_beta"], rope["original_max_position_embeddings"]
    return replace(windowed(config), query_growth=growth)


def phi3(config: Any) -> Switches:
    """Return the switches of Phi-3 and Phi-4, which may rotate long texts by other frequencies."""
    rope = config.rope_parameters
    if rope["rope_type"] != "longrope":
        return windowed(config)
    return replace(windowed(config), short_length=rope["original_max_position_embeddings"])
