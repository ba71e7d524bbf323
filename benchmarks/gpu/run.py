"""Does everything work on this GPU, and how fast: `python -m benchmarks.gpu.run [options]`.

Each stage is a process. All import at once, which takes longest, and wait for their turn. This file
needs nothing but Python: packages may be installed from wheels first.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from benchmarks.gpu.results import Result, Results, number, right

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Turn:
    """When a stage runs: those of one group at the same time."""

    stage: str
    group: int
    most_seconds: float
    least_seconds: float = 10
    """A stage with less time left is not started."""


TURNS = (
    Turn("machine", 0, 60, 0),
    Turn("attention", 1, 60),
    Turn("train_right", 2, 90),
    Turn("serve_right", 2, 85),
    Turn("e2e", 2, 120, 20),
    Turn("launches", 2, 90),
    Turn("train_speed", 3, 120, 25),
    Turn("train_speed-float8", 4, 75, 25),
    Turn("serve_speed", 5, 95, 25),
    Turn("gpus", 6, 180, 60),
    Turn("train_peer", 7, 75, 20),
    Turn("train_speed-qlora", 8, 60, 25),
    Turn("serve_peer", 9, 60, 15),
    Turn("train_speed-eager", 10, 60, 25),
)
MODEL_BYTES = 20e9
"""Room for the weights of a 7B and what else is written."""


def main(argv: list[str] | None = None) -> int:
    """Run the stages; return 1 where a result is wrong."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = parse_options(argv)
    deadline = time.monotonic() + options.seconds
    results = Results(options.out)
    results.clear()
    with work_folder() as work, (options.out / "log.txt").open("ab") as log:
        environment = make_environment(work, options.wheels)
        if options.tiny:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        elif problem := try_gpu(environment):
            print(f"no GPU that torch can use: {problem}; --tiny checks on the CPU")
            return 2
        processes = start(options, environment, work, log)
        try:
            for group in sorted({turn.group for turn in processes}):
                ones = {turn: p for turn, p in processes.items() if turn.group == group}
                run_group(ones, deadline, results, is_limited=not options.tiny)
                results.write_table()
        finally:
            for process in processes.values():
                kill(process)
    return report(results, options.out)


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """Return the options, with the turns of the stages that are asked for."""
    parser = argparse.ArgumentParser(prog="scripts/gpu-check", description=__doc__)
    parser.add_argument("--seconds", type=float, default=460, help="the most that all may take")
    parser.add_argument("--out", type=lambda path: Path(path).resolve(), metavar="FOLDER")
    parser.add_argument("--only", metavar="STAGE,...", help=", ".join(t.stage for t in TURNS))
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="packages to install first")
    parser.add_argument("--tiny", action="store_true", help="every stage on the CPU, tiny shapes")
    options = parser.parse_args(argv)
    asked = options.only.split(",") if options.only else [turn.stage for turn in TURNS]
    if unknown := set(asked).difference(turn.stage for turn in TURNS):
        parser.error(f"--only: no stage {', '.join(sorted(unknown))}")
    options.turns = [turn for turn in TURNS if turn.stage in asked]
    options.out = options.out or Path(tempfile.mkdtemp(prefix="gpu-check-"))
    return options


@contextmanager
def work_folder() -> Iterator[Path]:
    """Make a folder for models and data, in memory where there is room; remove it at the end."""
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > MODEL_BYTES
    with tempfile.TemporaryDirectory(
        prefix="gpu-check-", dir=memory if has_room else None, ignore_cleanup_errors=True
    ) as folder:
        (Path(folder) / "tmp").mkdir()
        yield Path(folder)


def make_environment(work: Path, wheels: Path | None) -> dict[str, str]:
    """Return the environment of the stages, for which the wheels are installed."""
    packages = work / "packages"
    if wheels is not None:
        install = ("pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile")
        files = map(str, sorted(wheels.glob("*.whl")))
        command = (sys.executable, "-m", *install, "--target", str(packages), *files)
        if subprocess.run(command).returncode:
            raise SystemExit(f"--wheels: pip cannot install what is in {wheels}")
    path = os.pathsep.join(filter(None, (str(packages), os.environ.get("PYTHONPATH"))))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "NCCL_SOCKET_IFNAME": "lo",
        "TMPDIR": str(work / "tmp"),
        "TRITON_CACHE_DIR": str(work / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
    }


def try_gpu(environment: dict[str, str]) -> str | None:
    """Return why the GPU cannot be used; turn off what only some drivers can."""
    code = "import torch; torch.zeros(2**26, device='cuda'); torch.cuda.synchronize()"
    tried = None
    for _ in range(2):
        tried = subprocess.run(
            (sys.executable, "-c", code), env=environment, capture_output=True, text=True
        )
        if tried.returncode == 0:
            return None
        environment.pop("PYTORCH_ALLOC_CONF", None)
    return tried.stderr.strip().rpartition("\n")[2] if tried else None


def start(
    options: argparse.Namespace, environment: dict[str, str], work: Path, log: BinaryIO
) -> dict[Turn, "subprocess.Popen[str]"]:
    """Start the processes of all stages, which wait for their turn."""
    size = "tiny" if options.tiny else "full"
    command = (sys.executable, "-u", "-m", "benchmarks.gpu.stage", str(options.out), str(work))
    return {
        turn: subprocess.Popen(
            (*command, size, turn.stage),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        for turn in options.turns
    }


def run_group(
    processes: dict[Turn, "subprocess.Popen[str]"],
    deadline: float,
    results: Results,
    *,
    is_limited: bool,
) -> None:
    """Give some stages their turn, and wait until they have ended or their time is over."""
    started, limits = time.monotonic(), {}
    for turn, process in processes.items():
        if deadline - started < turn.least_seconds:
            results.add(Result(turn.stage, "the stage", "left out", note="no time left"))
            kill(process)
            continue
        limits[turn] = min(deadline, started + turn.most_seconds) if is_limited else deadline
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(f"{limits[turn] - time.monotonic()}\n")
            process.stdin.close()
    for turn, limit in limits.items():
        try:
            code = processes[turn].wait(max(0.1, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            results.add(Result(turn.stage, "the stage", "ended by its time limit"))
            continue
        finally:
            kill(processes[turn])
        seconds = round(time.monotonic() - started, 1)
        if code:
            results.add(Result(turn.stage, "the stage", f"failed: {code}", is_right=False))
        else:
            results.add(Result(turn.stage, "the stage", seconds, "s"))
        print(f"{turn.stage}: {seconds} s", flush=True)


def kill(process: "subprocess.Popen[str]") -> None:
    """End a stage with its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def report(results: Results, out: Path) -> int:
    """Print all results; return 1 where one is wrong."""
    found = results.read()
    for result in found:
        print(f"{right(result):3} {result.stage}: {result.check} = {number(result)}")
    wrong = [result for result in found if result.is_right is False]
    for result in wrong:
        print(f"wrong: {result.stage}: {result.check}: {number(result)}; {result.note}")
    print(f"{len(found)} results, {len(wrong)} wrong; all of them: {out}/results.md")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
