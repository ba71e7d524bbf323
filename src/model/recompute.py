"""Activations traded for time: layers that run their forward again in the backward pass."""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def decoder_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """Return the layers that can be recomputed, in the order in which they run."""
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def recompute_layers(model: nn.Module, count: int) -> None:
    """Have the first `count` layers keep only their input (Chen et al. 2016), and no others.

    The first ones, because by the time they run again the others' activations are gone. Nothing is
    recomputed in an architecture that cannot.
    """
    if not model.supports_gradient_checkpointing:
        return
    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    for number, layer in enumerate(decoder_layers(model)):
        layer.gradient_checkpointing = number < count
