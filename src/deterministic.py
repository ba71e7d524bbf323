"""Runs that give the same adapter byte for byte on the same hardware."""

import os


def compute_in_one_order() -> None:
    """Have every sum of this process added up in one order; to be called before CUDA starts.

    A step that has no such form raises RuntimeError.
    """
    import torch

    # Work space of its own for each stream, and no sums in the switch between GPUs.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    os.environ.setdefault("NCCL_ALGO", "^NVLS")
    # It reaches the backward pass of flash attention too, and has torch refuse cuDNN's.
    torch.use_deterministic_algorithms(True)
    # That would find bugs, at the price of writing all memory twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def is_nondeterministic(error: BaseException) -> bool:
    """Return whether an error says that a step has no deterministic form."""
    return isinstance(error, RuntimeError) and "deterministic implementation" in str(error)
