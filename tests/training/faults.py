"""Faults of one rank: `FAULT=rank:point:kind python -m tests.training.faults SETTINGS.json`.

Points: `start` (before the loop), `step3` (before that step), `validation3`, `save3` (in the middle
of the checkpoint after that step). Kinds: `kill`, `stop` (frozen), `stop-agent` (its agent is
frozen), `exit`, `raise`, and `nan` (the loss of that step on that rank).
"""

import math
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

MODULE = "tests.training.faults"
"""What `run_workers` starts in place of the worker."""


def install(fault: str) -> None:
    """Wrap the functions at which the fault strikes, in the process of one rank."""
    from src.training import context, loop, worker
    from src.training.checkpoint import checkpointer

    asked_rank, point, kind = fault.split(":")
    if os.environ["RANK"] != asked_rank:
        return
    poisoned = False

    def before(owner: Any, name: str, point_of: Callable[..., str]) -> None:
        function = getattr(owner, name)

        @wraps(function)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if point_of(*arguments, **options) == point:
                _strike()
            return function(*arguments, **options)

        setattr(owner, name, wrapped)

    def _strike() -> None:
        nonlocal poisoned
        match kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "stop-agent":
                os.kill(os.getppid(), signal.SIGSTOP)
            case "exit":
                os._exit(3)
            case "raise":
                raise RuntimeError("a fault, as asked")
            case "nan":
                poisoned = True

    def poison(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            batch = function(*arguments, **options)
            if poisoned:
                batch.loss_weights.fill_(math.nan)
            return batch

        return wrapped

    before(worker, "train", lambda *_, **__: "start")
    before(loop, "step_seed", lambda _seed, step, _rank: f"step{step}")
    before(loop, "validate", lambda *_, step, **__: f"validation{step}")
    before(checkpointer.shutil, "copyfile", _save_point)
    context.collate = poison(context.collate)


def _save_point(_source: Path, target: Path) -> str:
    """Return the point of a copy into an unfinished checkpoint."""
    folder = Path(target).parent
    if not (folder.parent.name.startswith(".partial-") and folder.name.startswith("step-")):
        return ""
    return f"save{int(folder.name.removeprefix('step-'))}"


if __name__ == "__main__":
    from src.training.supervise.rank_process import begin_rank

    STATUS = begin_rank(Path(sys.argv[1]), *map(int, sys.argv[2:]))

    from src.training.worker import main

    if asked := os.environ.get("FAULT"):
        install(asked)
    main(Path(sys.argv[1]), STATUS)
