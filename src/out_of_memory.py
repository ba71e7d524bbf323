"""Memory that ran out: how an error tells it, and how what a failed attempt held is given back."""

import contextlib
import ctypes
import gc

import torch

_SENTENCES = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the device, or this machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error) for text in _SENTENCES)


def release_memory() -> None:
    """Give back what a failed attempt held."""
    gc.collect()
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def trim_heap() -> None:
    """Give the gaps in this process's memory back to the machine."""
    with contextlib.suppress(AttributeError):  # C libraries other than GNU's do not have it
        ctypes.CDLL(None).malloc_trim(0)
