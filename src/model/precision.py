"""The precision of the base model and of the products with it: the fastest that the device has.

What is trained stays in float32, and so do sums, softmax and the loss.
"""

import torch

from src.errors import UserError


def choose_dtype(device: torch.device, asked: str | None = None) -> torch.dtype:
    """Return what `DTYPE` asks for, else bfloat16 where the hardware multiplies it.

    A GPU without it computes in float16, a CPU in float32. Raises UserError for a GPU that cannot
    do what is asked.
    """
    on_gpu = device.type == "cuda"
    if asked == "bfloat16" and on_gpu and not _has_bfloat16(device):
        raise UserError("DTYPE: expected float16 or float32 on this GPU, found bfloat16")
    if asked is not None:
        return getattr(torch, asked)
    if _has_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if on_gpu else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name that `DTYPE` has for a precision."""
    return str(dtype).removeprefix("torch.")


def _has_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for it: emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
