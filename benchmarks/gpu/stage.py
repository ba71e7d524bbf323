"""The process of one stage: `python -m benchmarks.gpu.stage OUT WORK full|tiny NAME`."""

import gc
import json
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.gpu.results import Result, Results
from src.environment import TrainEnvironment
from src.model.precision import choose_dtype

T = TypeVar("T")


class Stage:
    """What a stage has: a device, a time, folders, and where its results go."""

    def __init__(self, name: str, *, is_tiny: bool, out: Path, work: Path, seconds: float) -> None:
        self.name, self.is_tiny, self.out, self.work = name, is_tiny, out, work
        self.device = torch.device("cpu") if is_tiny else torch.device("cuda", 0)
        self.dtype = torch.float32 if is_tiny else choose_dtype(self.device)
        self.results = Results(out)
        self._ceilings = work / "ceilings.json"
        self._deadline = time.monotonic() + seconds

    @property
    def variant(self) -> str:
        """What the name of the stage has after a hyphen."""
        return self.name.partition("-")[2]

    @property
    def seconds_left(self) -> float:
        """How much of its time the stage still has."""
        return self._deadline - time.monotonic()

    def record(
        self,
        check: str,
        value: float | str,
        unit: str = "",
        *,
        is_right: bool | None = None,
        share: str = "",
        note: str = "",
    ) -> None:
        """Keep a result; a number that is not finite is told as a word."""
        if not isinstance(value, str):
            value = float(f"{value:.5g}") if math.isfinite(value) else str(value)
        print(f"{self.name}: {check}: {value} {unit} {share} {note}", flush=True)
        self.results.add(Result(self.name, check, value, unit, is_right, share, note[:900]))

    def section(self, function: Callable[..., T], *args: object, need: float = 0) -> T | None:
        """Call a part of the stage, which may fail alone; return None where it does.

        A part that has fewer than `need` seconds is left out.
        """
        name = " ".join((function.__name__.strip("_"), *(a for a in args if isinstance(a, str))))
        try:
            if self.seconds_left < need:
                self.record(name, "left out", note=f"{self.seconds_left:.0f} s left")
                return None
            return function(*args)
        except Exception as error:
            traceback.print_exc()
            # What fails in a peer is no fault of ours.
            is_right = None if self.name.endswith("_peer") else False
            message = f"{type(error).__name__}: {error}"
            self.record(name, "failed", is_right=is_right, note=message)
            traceback.clear_frames(error.__traceback__)
            return None
        finally:
            self.release_memory()

    def new_folder(self, prefix: str) -> Path:
        """Make an empty folder that goes with the check."""
        return Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=self.work))

    def on_device(self, environment: TrainEnvironment) -> TrainEnvironment:
        """Return the environment of trainings on the device of this stage."""
        return replace(environment, on_gpus=self.device.type == "cuda")

    @property
    def float8_refused(self) -> str | None:
        """Why this GPU cannot multiply in float8; a CPU emulates it."""
        if self.device.type == "cpu" or torch.cuda.get_device_capability(self.device) >= (8, 9):
            return None
        return "it takes a GPU of compute capability 8.9"

    def release_memory(self) -> None:
        """Give back what no tensor uses."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def peak_gigabytes(self) -> float:
        """Return the most memory that tensors took since the last call."""
        if self.device.type == "cpu":
            return 0.0
        peak = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        return peak

    def keep_ceilings(self, ceilings: dict[str, float]) -> None:
        """Keep what the machine reaches at most, for the stages that follow."""
        self._ceilings.write_text(json.dumps(ceilings))

    def share(self, value: float, ceiling: str) -> str:
        """Return a value as a share of a ceiling, where that was measured."""
        if not self._ceilings.is_file():
            return ""
        return f"{value / json.loads(self._ceilings.read_text())[ceiling]:.0%} of {ceiling}"


def main() -> None:
    """Import a stage, wait for its turn, and run it."""
    out, work, size, name = sys.argv[1:]
    module = import_module(f"benchmarks.gpu.stages.{name.partition('-')[0]}")
    seconds = sys.stdin.readline()
    if not seconds:
        raise SystemExit("nobody gives this stage its turn")
    is_tiny = size == "tiny"
    module.run(Stage(name, is_tiny=is_tiny, out=Path(out), work=Path(work), seconds=float(seconds)))


if __name__ == "__main__":
    main()
