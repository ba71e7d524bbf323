"""Ministral 3 and the Mistral models of its kind: queries that grow with their position."""

from dataclasses import replace
from typing import Any

from src.model.core.families.switches import Switches, windowed


def ministral3(config: Any) -> Switches:
    """Return the switches of Ministral 3."""
    rope = config.rope_parameters
    growth = rope["llama_4_scaling_beta"], rope["original_max_position_embeddings"]
    return replace(windowed(config), query_growth=growth)
