"""CPU time and memory of one piece of work, from outside: each in a child of a lean process.

`python -m tests.measure MODULE:FUNCTION MEBIBYTES < jobs.json > results.json`
"""

import importlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from src.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


class Cost(NamedTuple):
    """How one piece of work ended, and what it took."""

    outcome: str
    """`refused: ` and a sentence, `taken`, `crashed: ` and why, or the signal that ended it."""
    seconds: float
    """Of processor time: what else the machine does is not the work's doing."""
    peak_mebibytes: float


def measure(function: str, jobs: list[list[str]], *, limit_mebibytes: int = 1024) -> list[Cost]:
    """Call `module:function` once with each job's arguments, each time in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.measure", function, str(limit_mebibytes)],
        cwd=ROOT,
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=True,
    )
    return [Cost(*cost) for cost in json.loads(done.stdout)]


def _measure_one(function, arguments: list[str], limit_mebibytes: int) -> Cost:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        resource.setrlimit(resource.RLIMIT_DATA, (limit_mebibytes << 20,) * 2)
        try:
            function(*arguments)
            outcome = "taken"
        except UserError as error:
            outcome = f"refused: {error}"
        except BaseException as error:
            outcome = f"crashed: {type(error).__name__}: {error}"
        os.write(write_end, outcome[:4000].encode("utf-8", "replace"))
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        outcome = pipe.read().decode()
    _, status, usage = os.wait4(child, 0)
    seconds = usage.ru_utime + usage.ru_stime
    return Cost(outcome or f"signal {os.WTERMSIG(status)}", seconds, usage.ru_maxrss / 1024)


def _main(function_name: str, limit_mebibytes: int) -> None:
    module, _, name = function_name.partition(":")
    function = getattr(importlib.import_module(module), name)
    jobs = json.load(sys.stdin)
    costs = [_measure_one(function, arguments, limit_mebibytes) for arguments in jobs]
    json.dump(costs, sys.stdout)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
