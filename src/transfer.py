"""Copies of small tensors to the device, for which the host does not wait."""

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the host on the device, while the device may still be at work."""
    if device.type == "cuda":
        # Memory that can be paged out is copied only when the device has come to it.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
