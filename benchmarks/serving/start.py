"""What a first answer costs: `scripts/predict` from command to first word, and its memory.

`python -m benchmarks.run start [--rounds N] [--output DIR]`
"""

import argparse
import os
import subprocess
import time
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.picture import machine_name
from benchmarks.shapes import REAL_MODEL
from src.cli.server import ROOT
from src.weights.base_model.base_model import find_base_model

ONE = ("prompt=What is the capital of France?", "temperature=0", "repetition_penalty=1")
TWO = (*ONE, "num_outputs=2", "min_new_tokens=256", "max_new_tokens=256")


def main(argv: list[str]) -> None:
    """Ask the real model, which lies converted in the cache, and write a table."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark start")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many is kept")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks")
    arguments = parser.parse_args(argv)
    os.environ["BASE_MODEL"] = REAL_MODEL
    find_base_model(os.environ)
    first_word = min(_ask(ONE)[0] for _ in range(arguments.rounds))
    memory = min(_ask(TWO)[1] for _ in range(arguments.rounds))
    lines = [
        f"A first answer of {REAL_MODEL}, {date.today()}, {machine_name('all threads')}, "
        f"torch {version('torch')}, best of {arguments.rounds}",
        f"`scripts/benchmark start --rounds {arguments.rounds}`",
        "",
        "| what | measured |",
        "|---|---|",
        f"| `scripts/predict`, from command to first word | {first_word:.1f} s |",
        f"| memory of all its processes at the peak, two answers of 256 tokens | {memory:.2f} GB |",
    ]
    arguments.output.mkdir(exist_ok=True)
    (arguments.output / "start-cpu.md").write_text("\n".join(lines) + "\n")
    print(*lines, sep="\n")


def _ask(inputs: tuple[str, ...]) -> tuple[float, float]:
    """Return the seconds until the first word, and the gigabytes at the peak."""
    started = time.monotonic()
    command = [ROOT / "scripts" / "predict", *(text for each in inputs for text in ("-i", each))]
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    seconds, memory = 0.0, 0
    while process.poll() is None:
        if not seconds and process.stdout.read(1):
            seconds = time.monotonic() - started
        memory = max(memory, _used(process))
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"scripts/predict failed with exit code {process.returncode}")
    return seconds or time.monotonic() - started, memory / 1e9


def _used(process: psutil.Process) -> int:
    """Return the bytes of a process and all that it started; what they share counts once."""
    used = 0
    with suppress(psutil.NoSuchProcess):
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                used += each.memory_full_info().pss
    return used
