"""Training speed beside the peers': the same model, data and settings in one run.

`python -m src.local.benchmark train [--epochs N] [--output DIR]`
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from src.data.dataset import TokenDataset
from src.data.prepare import prepare_data
from src.local.demo import collect_functions
from src.local.picture import draw_bars, machine_name
from src.local.server import ROOT
from src.local.tiny_model import make_base_model
from src.settings import TrainSettings
from src.text.formats import build_train_speech
from src.text.tokenizer import Tokenizer

NUM_EXAMPLES = 400
MAX_LENGTH = 256
PEERS = ROOT / ".venv-peers" / "bin" / "python"
LIBRARIES = ("torch", "transformers", "peft", "deepspeed")
_STEP = re.compile(rb"^step (\d+)/|^\{'loss'|^\{.*'loss':")


@dataclass(frozen=True)
class Variant:
    """One way to do the work."""

    name: str
    packed: bool
    micro_batch_size: int
    peer: str | None = None
    """The peer's program; None is this project."""
    settings: tuple[tuple[str, object], ...] = ()


VARIANTS = (
    Variant("cog-finetune, packed", True, 3),
    Variant("cog-finetune, unpacked", False, 8),
    Variant("cog-finetune, unpacked, qlora", False, 8, settings=(("peft_method", "qlora"),)),
    Variant("TRL SFTTrainer, packed", True, 3, peer="trl_sft.py"),
    Variant("TRL SFTTrainer, unpacked", False, 8, peer="trl_sft.py"),
    Variant("Transformers Trainer, unpacked", False, 8, peer="transformers_trainer.py"),
)


@dataclass(frozen=True)
class Result:
    """What one variant did; speeds are over the second half of its steps."""

    name: str
    learned_tokens_per_cpu_second: float
    tokens_per_cpu_second: float
    learned_tokens_per_second: float
    seconds_to_first_step: float
    peak_memory_gb: float


def main(argv: list[str]) -> None:
    """Run all variants in turn and write a table, a JSON file and a picture."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark train")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2, help="the best of so many is kept")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        work = _prepare(Path(folder))
        results: dict[str, Result] = {}
        for number in range(arguments.rounds):
            for variant in VARIANTS:
                run_dir = Path(folder) / f"{number}-{VARIANTS.index(variant)}"
                result = _run(variant, work, run_dir, arguments.epochs)
                print(json.dumps(asdict(result)), flush=True)
                known = results.get(variant.name)
                if known is None or _speed(result) > _speed(known):
                    results[variant.name] = result
    arguments.output.mkdir(exist_ok=True)
    _write(arguments.output, list(results.values()), work, arguments.epochs, arguments.rounds)


def _speed(result: Result) -> float:
    return result.learned_tokens_per_cpu_second


@dataclass(frozen=True)
class _Work:
    base_model: Path
    data: Path
    tokens: int
    learned_tokens: int


def _prepare(folder: Path) -> _Work:
    """Make the base model and the data: docstrings of the standard library, cut to MAX_LENGTH."""
    rows = [
        {"prompt": f"What does {name} do?", "completion": text}
        for name, text in collect_functions()
    ][:NUM_EXAMPLES]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base_model = folder / "base-model"
    # The context is the cut: every way gets the same tokens.
    make_base_model(base_model, [row["completion"] for row in rows], context=MAX_LENGTH)
    settings = _settings(base_model, data, epochs=1)
    tokenizer = Tokenizer(base_model)
    prepare_data(
        settings,
        tokenizer,
        build_train_speech(settings.base_model, tokenizer),
        context=MAX_LENGTH,
        folder=folder / "prepared",
        say=print,
    )
    counts = TokenDataset(folder / "prepared" / "train").counts
    return _Work(base_model, data, counts.tokens, counts.learned_tokens)


def _settings(base_model: Path, data: Path, *, epochs: int, **values: object) -> TrainSettings:
    options = {
        "base_model": str(base_model),
        "base_model_dir": str(base_model),
        "train_data": str(data),
        "train_data_name": data.name,
        "num_train_epochs": epochs,
        "learning_rate": 1e-3,
        "learning_rate_schedule": "constant",
        "lora_dropout": 0.0,
        "run_validation": False,
    }
    return TrainSettings(**{**options, **values})  # type: ignore[arg-type]


def _run(variant: Variant, work: _Work, run_dir: Path, epochs: int) -> Result:
    """Run one variant as a process of its own with one thread, and watch it from outside."""
    run_dir.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    settings_path = run_dir / "settings.json"
    if variant.peer is None:
        settings = _settings(
            work.base_model,
            work.data,
            epochs=epochs,
            train_batch_size=variant.micro_batch_size,
            micro_batch_size=variant.micro_batch_size,
            pack_sequences=variant.packed,
            chunk_size=MAX_LENGTH if variant.packed else 2048,
            **dict(variant.settings),
        )
        settings.save(settings_path)
        command = [sys.executable, "-u", "-m", "src.training.worker", str(settings_path)]
    else:
        request = {
            "base_model": str(work.base_model),
            "data": str(work.data),
            "output": str(run_dir / "output"),
            "epochs": epochs,
            "micro_batch_size": variant.micro_batch_size,
            "max_length": MAX_LENGTH,
            "packed": variant.packed,
            "learning_rate": 1e-3,
            "bf16": False,
            "use_cpu": True,
        }
        settings_path.write_text(json.dumps(request))
        program = ROOT / "scripts" / "peers" / variant.peer
        command = [str(PEERS), "-u", str(program), str(settings_path)]
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    steps = list(_watch(process))
    process.wait()
    if process.returncode or len(steps) < 4:
        raise RuntimeError(f"{variant.name} failed with exit code {process.returncode}")
    middle, last = steps[len(steps) // 2 - 1], steps[-1]
    share = (last.step - middle.step) / last.step * epochs
    cpu, wall = last.cpu - middle.cpu, last.wall - middle.wall
    return Result(
        variant.name,
        round(work.learned_tokens * share / cpu, 1),
        round(work.tokens * share / cpu, 1),
        round(work.learned_tokens * share / wall, 1),
        round(steps[0].wall - started, 2),
        round(max(step.memory for step in steps) / 1e9, 3),
    )


@dataclass(frozen=True)
class _Step:
    step: int
    wall: float
    cpu: float
    memory: int


def _watch(process: subprocess.Popen[bytes]) -> Iterator[_Step]:
    """Yield time, CPU seconds and peak memory at each line that tells of a step."""
    assert process.stdout is not None
    count = 0
    for line in process.stdout:
        found = _STEP.match(line)
        if not found:
            if b"Error" in line:
                print(line.decode(errors="replace"), end="", file=sys.stderr)
            continue
        count = int(found[1]) if found[1] else count + 1
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        yield _Step(count, time.monotonic(), cpu, int(peak[1]) * 1024 if peak else 0)


def _write(folder: Path, results: list[Result], work: _Work, epochs: int, rounds: int) -> None:
    record = {
        "date": date.today().isoformat(),
        "hardware": machine_name(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        "command": f"scripts/benchmark train --epochs {epochs} --rounds {rounds}",
        "work": {
            "examples": NUM_EXAMPLES,
            "tokens": work.tokens,
            "learned_tokens": work.learned_tokens,
        },
        "results": [asdict(result) for result in results],
    }
    (folder / "train-cpu.json").write_text(json.dumps(record, indent=2) + "\n")
    lines = [
        f"Training speed, {record['date']}, {record['hardware']}, best of {rounds}",
        f"`{record['command']}`",
        "",
        "| | learned tokens / CPU s | tokens / CPU s | learned tokens / s | first step (s) "
        "| peak (GB) |",
        "|---|---|---|---|---|---|",
        *(
            f"| {r.name} | {r.learned_tokens_per_cpu_second:,.0f} | {r.tokens_per_cpu_second:,.0f} "
            f"| {r.learned_tokens_per_second:,.0f} | {r.seconds_to_first_step:.1f} "
            f"| {r.peak_memory_gb:.2f} |"
            for r in results
        ),
    ]
    table = "\n".join(lines) + "\n"
    (folder / "train-cpu.md").write_text(table)
    bars = {r.name: r.learned_tokens_per_cpu_second for r in results}
    (folder / "train-cpu.svg").write_text(draw_bars(bars, "learned tokens per CPU second"))
    print(table)
