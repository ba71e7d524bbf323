"""The machines of a run, as DeepSpeed's hostfile lists them (standard library only)."""

import base64
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from src.errors import UserError


@dataclass(frozen=True)
class Hosts:
    """Several machines that train together; the first takes the requests."""

    slots: dict[str, int]
    """GPUs or processes on each machine, the first one's first."""
    node_rank: int
    """Which of them this machine is."""
    shared_folder: Path
    """A folder that all of them see under the same name."""

    @property
    def num_processes(self) -> int:
        return sum(self.slots.values())

    @property
    def num_local(self) -> int:
        return list(self.slots.values())[self.node_rank]

    @property
    def main_address(self) -> str:
        return next(iter(self.slots))


def find_hosts(environ: Mapping[str, str]) -> Hosts | None:
    """Return the machines that `DEEPSPEED_HOSTFILE` names, or None for this one alone.

    Raises UserError for a file, `NODE_RANK` or `SHARED_FOLDER` that is missing or wrong.
    """
    name = environ.get("DEEPSPEED_HOSTFILE", "").strip()
    if not name:
        return None
    slots = _read_hostfile(Path(name))
    asked = environ.get("NODE_RANK", "0")
    if not asked.isdigit() or int(asked) >= len(slots):
        raise UserError(
            f"NODE_RANK: expected a number from 0 to {len(slots) - 1}, the place of this machine "
            f"in the hostfile; found {asked!r}"
        )
    shared = environ.get("SHARED_FOLDER", "").strip()
    if not shared or not Path(shared).is_dir():
        raise UserError(
            "SHARED_FOLDER: expected a folder that all machines of the hostfile see under the same "
            f"name; found {shared or 'none'}"
        )
    return Hosts(slots, int(asked), Path(shared))


def _read_hostfile(path: Path) -> dict[str, int]:
    if not path.is_file():
        raise UserError(f"DEEPSPEED_HOSTFILE: there is no file {path}")
    slots: dict[str, int] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = re.fullmatch(r"(\S+)\s+slots=(\d+)", text)
        if not found or int(found[2]) < 1 or found[1] in slots:
            raise UserError(
                f"{path.name}, line {number}: expected a new machine's address and slots=NUMBER, "
                f"found {text[:80]!r}"
            )
        slots[found[1]] = int(found[2])
    if not slots:
        raise UserError(f"{path.name}: expected at least one line such as 10.0.0.1 slots=8")
    return slots


def encode_world(devices: Mapping[str, list[int | str]]) -> str:
    """Return machines and their devices in the form that DeepSpeed's launcher reads."""
    return base64.urlsafe_b64encode(json.dumps(devices).encode()).decode()


def local_devices(num_processes: int) -> list[int | str]:
    """Return the names of this machine's devices; `CUDA_VISIBLE_DEVICES` says which there are."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if not names:
        return list(range(num_processes))
    return [int(name) if name.isdigit() else name for name in names[:num_processes]]
