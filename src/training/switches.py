"""What the server's owner sets for all trainings in the environment, checked before any work."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from src.errors import UserError

FAST_PATH_PARTS = ("norm", "attention", "mlp", "lora")
FROZEN_SECONDS = 60.0


@dataclass(frozen=True)
class Switches:
    """How trainings of this server differ from what they would choose by themselves."""

    num_processes: int | None
    zero_stage: int | None
    device_memory: float | None
    """Bytes."""
    frozen_seconds: float
    fast_path_off: frozenset[str]


def read_switches(environ: Mapping[str, str]) -> Switches:
    """Return what the environment asks for; raises UserError that names what it cannot mean."""
    memory_gb = _number_above_0("DEVICE_MEMORY_GB", environ)
    return Switches(
        num_processes=_num_processes(environ.get("NUM_PROCESSES")),
        zero_stage=_zero_stage(environ.get("ZERO_STAGE")),
        device_memory=None if memory_gb is None else memory_gb * 1e9,
        frozen_seconds=_number_above_0("FROZEN_SECONDS", environ) or FROZEN_SECONDS,
        fast_path_off=_fast_path_off(environ.get("FAST_PATH_OFF", "")),
    )


def _num_processes(asked: str | None) -> int | None:
    if asked is None:
        return None
    if not asked.isdecimal() or int(asked) < 1:
        raise UserError(f"NUM_PROCESSES: expected a number of at least 1, found {asked!r}")
    return int(asked)


def _zero_stage(asked: str | None) -> int | None:
    if not asked:
        return None
    if asked not in ("2", "3"):
        raise UserError(f"ZERO_STAGE: expected 2 or 3, found {asked!r}")
    return int(asked)


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


def _fast_path_off(asked: str) -> frozenset[str]:
    parts = frozenset(part.strip() for part in asked.split(",") if part.strip())
    if unknown := parts.difference(FAST_PATH_PARTS):
        raise UserError(
            f"FAST_PATH_OFF: expected some of {','.join(FAST_PATH_PARTS)}; "
            f"found {', '.join(sorted(unknown))}"
        )
    return parts
