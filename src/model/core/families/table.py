"""The families that our decoder knows; all others run in transformers."""

from collections.abc import Callable
from typing import Any

from src.model.core.blocks.experts import unfit_experts
from src.model.core.families.gemma import gemma, gemma2, gemma3
from src.model.core.families.glm import glm, glm4
from src.model.core.families.gpt_oss import gpt_oss
from src.model.core.families.granite import granite
from src.model.core.families.long_texts import ministral3, phi3
from src.model.core.families.olmo import exaone4, olmo2, olmo3
from src.model.core.families.qwen import qwen3_5
from src.model.core.families.smollm3 import smollm3
from src.model.core.families.switches import Switches, base_switches, windowed
from src.model.core.layers import ACTIVATIONS

FAMILIES: dict[str, Callable[[Any], Switches]] = {
    "llama": base_switches,
    "mistral": windowed,
    "ministral": base_switches,
    "ministral3": ministral3,
    "qwen2": base_switches,
    "qwen3": base_switches,
    "smollm3": smollm3,
    "phi3": phi3,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma3,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "glm": glm,
    "glm4": glm4,
    "helium": glm,
    "ernie4_5": glm,
    "exaone4": exaone4,
    "granite": granite,
    "seed_oss": base_switches,
    "mixtral": windowed,
    "qwen3_moe": windowed,
    "gpt_oss": gpt_oss,
    "qwen3_5_text": qwen3_5,
    "qwen3_5_moe_text": qwen3_5,
}

_DEPENDENT_ROPES = {"dynamic", "longrope"}


def switches_of(config: Any) -> Switches | str:
    """Return a configuration's switches, or why our decoder does not run it."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        return f"its architecture is {config.model_type}"
    if (rope := dependent_rope(config)) is not None and family is not phi3:
        return f"its rotary embedding is {rope}"
    if hasattr(config, "num_experts_per_tok") and (reason := unfit_experts(config)) is not None:
        return reason
    switches = family(config)
    if switches.activation not in ACTIVATIONS:
        return f"its activation is {switches.activation}"
    return switches


def dependent_rope(config: Any) -> str | None:
    """Return the rotary embedding that turns each token by the length of the sequence, if any."""
    ropes = getattr(config, "rope_parameters", None) or {}
    parts = [rope for rope in ropes.values() if isinstance(rope, dict)] or [ropes]
    kinds = (rope.get("rope_type") for rope in parts)
    return next((kind for kind in kinds if kind in _DEPENDENT_ROPES), None)
