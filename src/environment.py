"""What the operator sets in the environment: each variable is read once, typed and checked."""

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.errors import UserError

DTYPES = ("float32", "bfloat16", "float16")
FROZEN_SECONDS = 60.0
CACHE_DIR = "~/.cache/cog-finetune"


@dataclass(frozen=True, kw_only=True)
class TrainEnvironment:
    """The variables of a training; stored with its settings, so that it can be replayed."""

    num_processes: int | None = None
    """`NUM_PROCESSES`: GPUs of this machine to use, or CPU processes where there is none."""
    on_gpus: bool = False
    """Whether these processes have GPUs; found, not set."""
    zero_stage: int | None = None
    """`ZERO_STAGE`: 2 or 3, instead of choosing by memory."""
    device_memory: float | None = None
    """`DEVICE_MEMORY_GB`, in bytes: the most that training may take of each device."""
    dtype: str | None = None
    """`DTYPE`: the precision of the base model; None for the fastest of the device."""
    in_float8: bool = False
    """`BASE_WEIGHTS=fp8`: frozen weights in float8."""
    compile: bool | None = None
    """`COMPILE`: whether the layers are compiled; None where it pays."""
    frozen_seconds: float = FROZEN_SECONDS
    """`FROZEN_SECONDS`: a rank without a heartbeat for so long ends the run."""
    deterministic: bool = False
    """`DETERMINISTIC`: the same adapter byte for byte, on a GPU too."""
    checkpoint_dir: str | None = None
    """`CHECKPOINT_DIR`: where trainings keep checkpoints."""
    num_nodes: int = 1
    """`NUM_NODES`: machines that train together."""
    rendezvous: str | None = None
    """`RENDEZVOUS`: host:port of the machine where they meet."""
    port: int | None = None
    """`PORT`: where Cog's server listens."""


def read_train_environment(environ: Mapping[str, str]) -> TrainEnvironment:
    """Return what the environment asks of a training.

    Raises UserError that names the variable that cannot be meant.
    """
    memory_gb = _number_above_0("DEVICE_MEMORY_GB", environ)
    num_nodes = _whole_number("NUM_NODES", environ) or 1
    rendezvous = environ.get("RENDEZVOUS", "").strip() or None
    _, _, port = (rendezvous or "").rpartition(":")
    if num_nodes > 1 and not (port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(
            "RENDEZVOUS: expected host:port of one of the NUM_NODES machines, found "
            f"{rendezvous or 'none'}"
        )
    return TrainEnvironment(
        num_processes=_whole_number("NUM_PROCESSES", environ),
        zero_stage=int(stage) if (stage := _one_of(("2", "3"), "ZERO_STAGE", environ)) else None,
        device_memory=None if memory_gb is None else memory_gb * 1e9,
        dtype=_one_of(DTYPES, "DTYPE", environ),
        in_float8=_in_float8(environ),
        compile=read_flag("COMPILE", environ),
        frozen_seconds=_number_above_0("FROZEN_SECONDS", environ) or FROZEN_SECONDS,
        deterministic=read_flag("DETERMINISTIC", environ) or False,
        checkpoint_dir=environ.get("CHECKPOINT_DIR", "").strip() or None,
        num_nodes=num_nodes,
        rendezvous=rendezvous if num_nodes > 1 else None,
        port=_whole_number("PORT", environ),
    )


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return `BASE_MODEL_CACHE`, where base models and compiled code are kept."""
    return Path(environ.get("BASE_MODEL_CACHE") or CACHE_DIR).expanduser()


def read_flag(name: str, environ: Mapping[str, str]) -> bool | None:
    """Return whether an option is on; None where it is left alone.

    Raises UserError for anything but 0 and 1: an option that is overlooked is worse than an error.
    """
    asked = environ.get(name, "").strip()
    if asked not in ("", "0", "1"):
        raise UserError(f"{name}: expected 0 or 1, found {asked!r}")
    return asked == "1" if asked else None


@dataclass(frozen=True, kw_only=True)
class ServeEnvironment:
    """The variables of a server that answers prompts."""

    in_4bit: bool
    """`BASE_MODEL_IN_4BIT`: hold the base model in 4-bit."""
    dtype: str | None = None
    """`DTYPE`: the precision of the base model; None for the fastest of the device."""
    in_float8: bool = False
    """`BASE_WEIGHTS=fp8`: frozen weights in float8."""
    compile: bool | None = None
    """`COMPILE`: whether the layers are compiled; None where it pays."""
    cache_bytes: float | None = None
    """`KV_CACHE_GB`, in bytes: the memory of keys and values; None for what is free."""
    max_context: int | None = None
    """`MAX_CONTEXT`: the longest prompt with its answer, in tokens; None for the base model's."""
    tensor_parallel: int | None = None
    """`TENSOR_PARALLEL`: GPUs, or CPU processes, that share a base model; None for as few as
    have room for it."""
    can_speculate: bool | None
    """`LOOK_AHEAD`: verify several speculated tokens in one step; None where it pays."""
    weights_cache: Path
    """`WEIGHTS_CACHE`: where unpacked fine-tuned weights are kept."""
    weights_dir: Path | None
    """`WEIGHTS_DIR`: the folder below which requests may name weights by path."""


def read_serve_environment(environ: Mapping[str, str]) -> ServeEnvironment:
    """Return what the environment asks of a server.

    Raises UserError that names the variable that cannot be meant.
    """
    # Temporary files are where a container with a read-only root can write.
    own = Path(tempfile.gettempdir(), f"cog-finetune-weights-{os.geteuid()}")
    weights_dir = environ.get("WEIGHTS_DIR")
    cache_gb = _number_above_0("KV_CACHE_GB", environ)
    in_4bit, in_float8 = read_flag("BASE_MODEL_IN_4BIT", environ) or False, _in_float8(environ)
    if in_4bit and in_float8:
        raise UserError("BASE_WEIGHTS: expected none beside BASE_MODEL_IN_4BIT=1, found 'fp8'")
    return ServeEnvironment(
        in_4bit=in_4bit,
        dtype=_one_of(DTYPES, "DTYPE", environ),
        in_float8=in_float8,
        compile=read_flag("COMPILE", environ),
        cache_bytes=None if cache_gb is None else cache_gb * 1e9,
        max_context=_whole_number("MAX_CONTEXT", environ),
        tensor_parallel=_whole_number("TENSOR_PARALLEL", environ),
        can_speculate=read_flag("LOOK_AHEAD", environ),
        weights_cache=Path(environ.get("WEIGHTS_CACHE") or own),
        weights_dir=Path(weights_dir) if weights_dir else None,
    )


def _whole_number(name: str, environ: Mapping[str, str]) -> int | None:
    asked = environ.get(name)
    if asked is None:
        return None
    if not asked.isdecimal() or int(asked) < 1:
        raise UserError(f"{name}: expected a number of at least 1, found {asked!r}")
    return int(asked)


def _in_float8(environ: Mapping[str, str]) -> bool:
    return _one_of(("fp8",), "BASE_WEIGHTS", environ) is not None


def _one_of(choices: Sequence[str], name: str, environ: Mapping[str, str]) -> str | None:
    asked = environ.get(name, "").strip()
    if asked and asked not in choices:
        expected = " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
        raise UserError(f"{name}: expected {expected}, found {asked!r}")
    return asked or None


def _number_above_0(name: str, environ: Mapping[str, str]) -> float | None:
    asked = environ.get(name)
    if asked is None:
        return None
    try:
        number = float(asked)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise UserError(f"{name}: expected a number above 0, found {asked!r}")
    return number
