"""Between how many ranks a base model is split."""

from pathlib import Path

import torch

from src.errors import UserError
from src.model.partition import Partition, possible_sizes, read_text_config
from src.model.shape import read_config
from src.model.sizes import read_shape

ROOM = 0.85
"""Of a GPU's memory, what weights may take: keys, values and passes need the rest."""


def choose_partition(
    folder: Path, asked: int | None, *, device: torch.device, dtype: torch.dtype, in_4bit: bool
) -> Partition | None:
    """Return the first rank's part of a base model; None where it has the whole.

    `asked` is `TENSOR_PARALLEL`; without it a model that does not fit on one GPU is split between
    as many of them as can be. Raises UserError where what is asked for cannot be.
    """
    num_gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if asked is None:
        if num_gpus < 2 or in_4bit or read_config(folder).get("quantization_config"):
            return None
        gpu_bytes = torch.cuda.get_device_properties(device).total_memory
        num_ranks = ranks_needed(folder, num_gpus, gpu_bytes, dtype)
    else:
        num_ranks = asked
    if num_ranks == 1:
        return None
    if in_4bit:
        raise UserError(
            f"TENSOR_PARALLEL: expected 1 beside BASE_MODEL_IN_4BIT=1, found {num_ranks}"
        )
    if num_gpus and num_ranks > num_gpus:
        raise UserError(
            f"TENSOR_PARALLEL: expected at most {num_gpus}, the GPUs that are visible; "
            f"found {num_ranks}"
        )
    try:
        partition = Partition.of(folder, rank=0, num_ranks=num_ranks)
    except UserError:
        if asked is not None:
            raise
        return None  # one GPU may have room all the same
    kind = "GPUs" if num_gpus else "CPU processes"
    print(f"tensor parallel: the model is split between {num_ranks} {kind}", flush=True)
    return partition


def ranks_needed(folder: Path, num_gpus: int, gpu_bytes: float, dtype: torch.dtype) -> int:
    """Return 1 where a GPU has room for the weights, else the most of them that can split it."""
    shape = read_shape(folder)
    if shape is None:
        return 1
    num_bytes = (shape.linear_parameters + shape.other_parameters) * dtype.itemsize
    if num_bytes <= ROOM * gpu_bytes:
        return 1
    return max(possible_sizes(read_text_config(folder), num_gpus))
