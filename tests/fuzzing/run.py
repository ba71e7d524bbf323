"""Try damaged input without end: scripts/fuzz.

`scripts/fuzz [archives=N] [adapters=N] [lines=N] [requests=N] [--seed S]
[--seconds T]`, which stops each of them after T seconds
"""

import argparse
import gc
import os
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzzing.targets import INPUTS_A_RUN, TARGETS, load

LIMIT_SECONDS = 0.1


@dataclass
class Tally:
    """What came of the inputs of one target."""

    inputs: int = 0
    taken: int = 0
    slow: int = 0
    slowest_seconds: float = 0.0
    slowest_number: int = 0
    failures: int = 0
    first_failure: str = ""


def fuzz(name: str, num_inputs: int, seed: int, max_seconds: float = float("inf")) -> Tally:
    """Try that many inputs, or what the time allows; input number n of a seed is always the same.

    The limit is on processor time: what else the machine does is not the input's doing.
    """
    target, tally = load(name), Tally()
    # A full collection visits all that the libraries made, for 240 ms that are no input's.
    gc.collect()
    gc.freeze()
    at_once = INPUTS_A_RUN.get(name, 1)
    end = time.monotonic() + max_seconds
    with tempfile.TemporaryDirectory(dir=_memory()) as made:
        folder = Path(made)
        for number in range(-(-num_inputs // at_once)):
            if number % 100 == 0 and time.monotonic() > end:
                break
            started = time.thread_time()
            try:
                tally.taken += target(Random(f"{name} {seed} {number}"), folder)
            except Exception:
                tally.failures += 1
                tally.first_failure = tally.first_failure or (
                    f"{name}, seed {seed}, number {number}:\n{traceback.format_exc()}"
                )
            seconds = time.thread_time() - started
            if seconds > tally.slowest_seconds:
                tally.slowest_seconds, tally.slowest_number = seconds, number
            tally.slow += seconds > LIMIT_SECONDS
            tally.inputs += at_once
    return tally


def _memory() -> str | None:
    """Files that live for a millisecond need no disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def target_count(text: str) -> tuple[str, int]:
    """Read one TARGET=COUNT of the command line."""
    name, _, count = text.partition("=")
    if name not in TARGETS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(TARGETS)}, found {name!r}")
    return name, int(count)


def main() -> int:
    """Run the targets one after the other, each in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("counts", nargs="*", metavar="TARGET=COUNT", type=target_count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    counts = dict(options.counts) or dict.fromkeys(TARGETS, 10_000)
    is_clean = True
    for name, count in counts.items():
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            tally = fuzz(name, count, options.seed, options.seconds)
            print(
                f"{name}: {tally.inputs:,} inputs in {time.monotonic() - started:.0f} s, "
                f"{tally.failures} failures, {tally.slow} over {LIMIT_SECONDS * 1000:.0f} ms, "
                f"slowest {tally.slowest_seconds * 1000:.1f} ms (number {tally.slowest_number}), "
                f"{tally.taken:,} taken",
                flush=True,
            )
            print(tally.first_failure, end="", file=sys.stderr, flush=True)
            os._exit(1 if tally.failures or tally.slow else 0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            print(f"{name}: ended by signal {os.WTERMSIG(status)}", flush=True)
        is_clean = is_clean and status == 0
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
