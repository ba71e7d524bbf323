"""One variant of the training benchmark as a process of its own, watched from outside."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.shapes import REAL_MODEL
from benchmarks.training.device import peak_memory
from benchmarks.training.variants import Variant
from benchmarks.training.work import LEARNING_RATE, TrainWork, plain_settings
from src.cli.server import ROOT
from src.environment import read_train_environment

PEERS = ROOT / ".venv-peers" / "bin" / "python"
_PLANNED = re.compile(rb"^plan: memory: about ([\d.,]+) (GB|MB)")
_STEP = re.compile(rb"^step (\d+)/|^\{'loss'|^\{.*'loss':")


@dataclass(frozen=True)
class Result:
    """What one variant did; speeds are over the second half of its steps."""

    name: str
    target_tokens_per_cpu_second: float
    tokens_per_cpu_second: float
    target_tokens_per_second: float
    tokens_per_second: float
    share_of_limit: float
    """Of what the device's matrix products allow."""
    seconds_to_first_step: float
    peak_memory_gb: float
    planned_memory_gb: float | None


def run_variant(variant: Variant, work: TrainWork, run_dir: Path) -> Result:
    """Run one variant in a folder of its own, with one thread on a CPU; return what it did."""
    run_dir.mkdir()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not work.on_gpu:
        environment |= {"OMP_NUM_THREADS": "1"}
    command = (_our_command if variant.peer is None else _peer_command)(variant, work, run_dir)
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    lines = list(_watch(process, on_gpu=work.on_gpu))
    process.wait()
    planned = [line.planned for line in lines if line.planned]
    steps = [line for line in lines if not line.planned]
    if process.returncode or len(steps) < 4:
        raise RuntimeError(f"{variant.name} failed with exit code {process.returncode}")
    middle, last = steps[len(steps) // 2 - 1], steps[-1]
    share = (last.step - middle.step) / last.step * work.epochs
    cpu, wall = last.cpu - middle.cpu, last.wall - middle.wall
    seconds = wall if work.on_gpu else cpu
    return Result(
        variant.name,
        round(work.target_tokens * share / cpu, 1),
        round(work.tokens * share / cpu, 1),
        round(work.target_tokens * share / wall, 1),
        round(work.tokens * share / wall, 1),
        round(work.tokens * share / seconds * work.flops_per_token / work.matmul_flops, 3),
        round(steps[0].wall - started, 2),
        round(max(step.memory for step in steps) / 1e9, 3),
        planned[0] if planned else None,
    )


def _our_command(variant: Variant, work: TrainWork, run_dir: Path) -> list[str]:
    micro_batch_size = work.micro_batch_size(packed=variant.packed)
    asked = {}
    if not work.on_gpu:
        asked["DTYPE"] = "bfloat16" if variant.bf16 else "float32"
        asked["COMPILE"] = "1" if variant.compiled else "0"
    settings = plain_settings(
        work.base_model,
        work.data,
        epochs=work.epochs,
        train_batch_size=micro_batch_size,
        micro_batch_size=micro_batch_size,
        pack_sequences=variant.packed,
        chunk_size=work.length if variant.packed else 2048,
        environment=replace(read_train_environment(asked), on_gpus=work.on_gpu),
        **dict(variant.settings),
    )
    path = run_dir / "settings.json"
    settings.save(path)
    return [sys.executable, "-u", "-m", "src.training.worker", str(path)]


def _peer_command(variant: Variant, work: TrainWork, run_dir: Path) -> list[str]:
    request = {
        "base_model": str(work.base_model),
        "data": str(work.data),
        "output": str(run_dir / "output"),
        "epochs": work.epochs,
        "micro_batch_size": work.micro_batch_size(packed=variant.packed),
        "max_length": work.length,
        "packed": variant.packed,
        "learning_rate": LEARNING_RATE,
        "chat": work.shape_name == REAL_MODEL,
        "bf16": work.on_gpu or variant.bf16,
        "use_cpu": not work.on_gpu,
        "liger": variant.liger,
    }
    path = run_dir / "settings.json"
    path.write_text(json.dumps(request))
    return [str(PEERS), "-u", str(ROOT / "benchmarks" / "peers" / str(variant.peer)), str(path)]


@dataclass(frozen=True)
class _Step:
    """A line that tells of a step, and what the process had used by then."""

    step: int
    wall: float
    cpu: float
    memory: int
    planned: float = 0.0
    """Gigabytes that the plan foresaw, at the line that tells of them."""


def _watch(process: subprocess.Popen[bytes], *, on_gpu: bool) -> Iterator[_Step]:
    """Yield time, CPU seconds and peak memory at each line that tells of a step."""
    assert process.stdout is not None
    count = 0
    for line in process.stdout:
        if found := _PLANNED.match(line):
            unit = 1.0 if found[2] == b"GB" else 1e-3
            yield _Step(count, 0.0, 0.0, 0, planned=float(found[1].replace(b",", b"")) * unit)
        found = _STEP.match(line)
        if not found:
            if b"Error" in line:
                print(line.decode(errors="replace"), end="", file=sys.stderr)
            continue
        count = int(found[1]) if found[1] else count + 1
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        yield _Step(count, time.monotonic(), cpu, peak_memory(process.pid, on_gpu=on_gpu))
