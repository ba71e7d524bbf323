"""Whether a training compiles its layers, and what the plan says of it."""

from pathlib import Path

from src.model.core.compiled import eager_reason
from src.model.core.families.table import FAMILIES
from src.model.shape import read_config
from src.settings import TrainSettings
from src.training.plan.resources import Resources


def compiles(settings: TrainSettings, resources: Resources, zero_stage: int) -> bool:
    """Return whether layers are compiled, where our decoder runs them."""
    family = read_config(Path(settings.base_model_dir)).get("model_type")
    reason = eager_reason(settings.environment.compile, on_gpu=resources.on_gpus)
    return reason is None and zero_stage != 3 and family in FAMILIES


def compile_sentence(settings: TrainSettings, resources: Resources, zero_stage: int) -> str | None:
    """Return what it costs, or why it is not done where that is a surprise."""
    if compiles(settings, resources, zero_stage):
        return "compiling the layer: about 15 s, kept for later runs"
    reason = eager_reason(settings.environment.compile, on_gpu=resources.on_gpus)
    return f"layers not compiled: {reason}" if reason else None
