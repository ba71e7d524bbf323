"""What a soak does to a server of trainings."""

import base64
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.soak.files import TRAINING_FILES, TRAINING_VALUES, tensors_of
from tests.soak.lane import Lane, NotAsPromised
from tests.soak.server import Process, SoakRequest, error_of

FROZEN_SECONDS = 8
TRAINING_SECONDS = 300.0
WAIT_SECONDS = 120.0
ERROR_SECONDS = 5.0
KEPT_SECONDS = 8.0
SETTINGS: Mapping[str, Any] = {
    "num_train_epochs": 10_000,
    "max_steps": 60,
    "learning_rate": 0.005,
    "run_validation": False,
    "checkpoint_seconds": 1,
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "lora": {"seed": 1},
    "qlora": {"peft_method": "qlora", "seed": 2},
    "packed": {"pack_sequences": True, "chunk_size": 256, "lora_rank": 4, "seed": 3},
}
NO_STEP = "before its first step ended|the training ended before its first step"


class Trainings:
    """Trains adapters that are known to the bit, and breaks off trainings in all ways."""

    def __init__(self, lane: Lane, checkpoints: Path, data: Mapping[str, bytes]) -> None:
        """Each variant has a training file of its own."""
        self._lane, self._checkpoints, self._data = lane, checkpoints, data
        self.archives: dict[str, bytes] = {}
        """What each variant's quiet training gave."""
        self._seconds = 0.0

    def learn(self) -> None:
        """Train each variant once, quietly."""
        for name in VARIANTS:
            started = time.monotonic()
            end = self._lane.end_of(self._start(name), TRAINING_SECONDS)
            assert end["status"] == "succeeded", end
            self.archives[name] = _archive(end)
            self._seconds = max(self._seconds, time.monotonic() - started)

    def actions(self) -> dict[str, tuple[int, Callable[[], None]]]:
        """Return what can be done, and how often it is drawn."""
        return {
            "training": (2, self._train),
            "rank killed": (4, self._kill_rank),
            "rank frozen": (1, self._freeze_rank),
            "launcher killed": (2, self._kill_launcher),
            "training worker killed": (1, self._kill_worker),
            "training server killed": (1, self._kill_server),
            "training server ended by SIGTERM": (2, self._terminate),
            "training canceled": (3, self._cancel),
            "bad training file": (4, self._bad_file),
            "training with oversized values": (4, self._oversized),
        }

    def _start(self, name: str, **values: Any) -> SoakRequest:
        data = f"data:;base64,{base64.b64encode(self._data[name]).decode()}"
        return self._lane.ask(train_data=data, **{**SETTINGS, **VARIANTS[name], **values})

    def _begin(self, **values: Any) -> tuple[str, SoakRequest]:
        """Start a training anew and let it run for a while."""
        shutil.rmtree(self._checkpoints, ignore_errors=True)
        name = self._lane.rng.choice(list(VARIANTS))
        request = self._start(name, **values)
        request.wait(self._lane.rng.uniform(0, self._seconds))
        return name, request

    def _check(self, name: str, end: Mapping[str, Any]) -> None:
        """Count an adapter that differs in one bit from the quiet training's."""
        if end["status"] != "succeeded":
            raise NotAsPromised(f"{name}: {end['status']}: {error_of(end)}")
        if tensors_of(_archive(end)) != tensors_of(self.archives[name]):
            self._lane.row.wrong += 1
            self._lane.note(f"{name}: another adapter than the quiet training's")

    def _train(self) -> None:
        shutil.rmtree(self._checkpoints, ignore_errors=True)
        name = self._lane.rng.choice(list(VARIANTS))
        self._check(name, self._lane.end_of(self._start(name), TRAINING_SECONDS))
        self._lane.row.as_promised += 1

    def _resume(self, name: str) -> None:
        """Go on after a kill, every other time: the adapter is that of an unbroken training."""
        self._lane.row.as_promised += 1
        if self._lane.rng.random() < 0.5:
            self._lane.next = ("training resumed", lambda: self._go_on(name))

    def _go_on(self, name: str) -> None:
        request = self._start(name, resume_from="auto")
        self._check(name, self._lane.end_of(request, TRAINING_SECONDS))
        self._lane.row.as_promised += 1

    def _find(self, is_meant: Callable[[Process], bool], request: SoakRequest) -> list[Process]:
        """Return the processes that are meant, once there are any; none if the training ended."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline and request.wait(0.05) is None:
            if found := [p for p in self._lane.server.busy() if is_meant(p)]:
                return found
        return []

    def _strike(self, found: list[Process], number: signal.Signals) -> Process:
        target = self._lane.rng.choice(found)
        self._lane.struck = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(target.pid, number)
        return target

    def _expect_failure(
        self, name: str, request: SoakRequest, pattern: str, seconds: float
    ) -> None:
        """Check that a training which was struck fails in time, or was over before."""
        end = self._lane.end_of(request, seconds + 30)
        took = time.monotonic() - self._lane.struck
        if end["status"] == "succeeded":
            self._check(name, end)
        elif took > seconds:
            raise NotAsPromised(f"the error came after {took:.1f} s: {error_of(end)}")
        else:
            self._lane.check_error(end, pattern)
            self._lane.check_left(self._lane.struck + seconds)

    def _kill_rank(self) -> None:
        name, request = self._begin()
        if found := self._find(lambda p: p.rank is not None, request):
            rank = self._strike(found, signal.SIGKILL).rank
            pattern = rf"^rank {rank} was killed by SIGKILL (after step \d+|{NO_STEP})|{NO_STEP}"
            self._expect_failure(name, request, pattern, ERROR_SECONDS)
        self._resume(name)

    def _freeze_rank(self) -> None:
        name, request = self._begin()
        if found := self._find(lambda p: p.rank is not None, request):
            rank = self._strike(found, signal.SIGSTOP).rank
            seconds = FROZEN_SECONDS + ERROR_SECONDS
            self._expect_failure(name, request, rf"^rank {rank} is frozen", seconds)
        self._resume(name)

    def _kill_launcher(self) -> None:
        name, request = self._begin()
        if found := self._find(_is_launcher, request):
            self._strike(found, signal.SIGKILL)
            self._lane.check_left(self._lane.struck + 2)
            self._expect_failure(name, request, "", ERROR_SECONDS)
        self._resume(name)

    def _kill_worker(self) -> None:
        name, _ = self._begin()
        self._lane.kill_worker()
        self._restart(name)

    def _kill_server(self) -> None:
        name, _ = self._begin()
        self._lane.struck = time.monotonic()
        self._lane.server.signal(signal.SIGKILL)
        self._lane.take_down(1, left_seconds=2)
        self._restart(name)

    def _terminate(self) -> None:
        name, request = self._begin()
        has_ended, step = request.wait(0) is not None, request.step
        self._lane.struck = time.monotonic()
        self._lane.server.signal(signal.SIGTERM)
        is_kept = self._is_kept(KEPT_SECONDS) if step and not has_ended else True
        self._lane.take_down(15, left_seconds=12)
        self._restart(name)
        if (end := request.wait(0)) is not None and end["status"] == "succeeded":
            self._check(name, end)  # it was all but over
        elif not is_kept:
            raise NotAsPromised(f"no adapter was kept; the log told of step {step}")

    def _restart(self, name: str) -> None:
        self._lane.server.start(**self._lane.extra)
        self._lane.is_down = False
        # The next training removes what the killed one could not.
        data = f"data:;base64,{base64.b64encode(b'').decode()}"
        self._lane.end_of(self._lane.ask(train_data=data), WAIT_SECONDS)
        self._resume(name)

    def _is_kept(self, seconds: float) -> bool:
        """Whether the adapter of the last step is on disk in time, stopped early or finished."""
        deadline = self._lane.struck + seconds
        while time.monotonic() < deadline:
            for kind in ("stopped", "finished"):
                for path in self._checkpoints.glob(f"run-*/{kind}-step-*/training.json"):
                    if json.loads(path.read_text())["stopped_early"] is (kind == "stopped"):
                        return True
            time.sleep(0.1)
        return False

    def _cancel(self) -> None:
        is_kept = self._lane.rng.random() < 0.5
        name, request = self._begin(save_on_cancel=is_kept)
        request.wait(0)
        has_stepped = request.step > 0
        self._lane.struck = time.monotonic()
        for _ in range(self._lane.rng.choice([1, 2])):
            request.cancel()
            time.sleep(self._lane.rng.uniform(0, 1))
        end = self._lane.end_of(request, WAIT_SECONDS)
        if end["status"] == "canceled":
            self._lane.check_left(self._lane.struck + 5)
            if has_stepped and is_kept and not self._is_kept(5):
                raise NotAsPromised(f"no adapter was kept; the log told of step {request.step}")
        else:
            self._check(name, end)
        self._resume(name)

    def _bad_file(self) -> None:
        content = TRAINING_FILES[self._lane.rng.choice(list(TRAINING_FILES))]
        data = f"data:;base64,{base64.b64encode(content).decode()}"
        request = self._lane.ask(train_data=data, **SETTINGS)
        self._lane.expect_refusal(self._lane.end_of(request, WAIT_SECONDS))

    def _oversized(self) -> None:
        values = self._lane.rng.choice(TRAINING_VALUES)
        end = self._lane.end_of(self._start("lora", **values), WAIT_SECONDS)
        if end["status"] != "failed":
            raise NotAsPromised(f"{str(values)[:60]}: {end['status']}")
        self._lane.expect_refusal(end)


def _is_launcher(process: Process) -> bool:
    """Whether it is the agent above the ranks."""
    return "src.training.supervise.agent" in process.command


def _archive(end: Mapping[str, Any]) -> bytes:
    return base64.b64decode(end["output"]["weights"].partition(",")[2])
