"""Training speed beside the peers': the same model, data and settings in one run.

`python -m src.local.benchmark train [--shape NAME] [--length N] [--ablate]`
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
from src.local.shapes import MATMUL_FLOPS, SHAPES, flops_per_token
from src.local.tiny_model import make_base_model
from src.model.shape import ModelShape
from src.settings import TrainSettings
from src.text.formats import build_train_speech
from src.text.tokenizer import Tokenizer
from src.training.devices import count_devices
from src.training.switches import FAST_PATH_PARTS

NUM_EXAMPLES = 400
PEERS = ROOT / ".venv-peers" / "bin" / "python"
LIBRARIES = ("torch", "transformers", "peft", "deepspeed")
_PLANNED = re.compile(rb"^plan: memory: about ([\d.,]+) (GB|MB)")
_STEP = re.compile(rb"^step (\d+)/|^\{'loss'|^\{.*'loss':")


@dataclass(frozen=True)
class Variant:
    """One way to do the work."""

    name: str
    packed: bool
    peer: str | None = None
    """The peer's program; None is this project."""
    settings: tuple[tuple[str, object], ...] = ()
    off: str = ""
    """Parts of the fast path that are left out."""
    liger: bool = False


QLORA = (("peft_method", "qlora"),)
VARIANTS = (
    Variant("cog-finetune, packed", True),
    Variant("cog-finetune, unpacked", False),
    Variant("cog-finetune, packed, qlora", True, settings=QLORA),
    Variant("cog-finetune, unpacked, qlora", False, settings=QLORA),
    Variant("TRL SFTTrainer, packed", True, peer="trl_sft.py"),
    Variant("TRL SFTTrainer, unpacked", False, peer="trl_sft.py"),
    Variant("Transformers Trainer, unpacked", False, peer="transformers_trainer.py"),
)
LIGER = (Variant("TRL SFTTrainer with Liger, packed", True, peer="trl_sft.py", liger=True),)
"""Its kernels run on GPUs only."""
ABLATIONS = (
    *(Variant(f"packed, without {part}", True, off=part) for part in FAST_PATH_PARTS),
    Variant("packed, without all of these", True, off=",".join(FAST_PATH_PARTS)),
    Variant("unpacked, without all of these", False, off=",".join(FAST_PATH_PARTS)),
)


@dataclass(frozen=True)
class Result:
    """What one variant did; speeds are over the second half of its steps."""

    name: str
    learned_tokens_per_cpu_second: float
    tokens_per_cpu_second: float
    learned_tokens_per_second: float
    tokens_per_second: float
    share_of_limit: float
    """Of what the device's matrix products allow."""
    seconds_to_first_step: float
    peak_memory_gb: float
    planned_memory_gb: float | None


def main(argv: list[str]) -> None:
    """Run all variants in turn and write a table, a JSON file and a picture."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark train")
    parser.add_argument("--shape", choices=SHAPES, help="tiny, or 7b where there is a GPU")
    parser.add_argument("--length", type=int, help="longest sequence (256, or 2048 on a GPU)")
    parser.add_argument("--packs", type=int, default=3, help="full sequences in a micro-batch")
    parser.add_argument("--examples", type=int, default=8, help="examples in one, unpacked")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2, help="the best of so many is kept")
    parser.add_argument("--ablate", action="store_true", help="leave out each part in turn")
    parser.add_argument("--only", default="", help="variants whose name holds this text")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks")
    arguments = parser.parse_args(argv)
    on_gpu = count_devices()[1]
    variants = [
        variant
        for variant in (
            *VARIANTS,
            *(LIGER if on_gpu else ()),
            *(ABLATIONS if arguments.ablate else ()),
        )
        if arguments.only in variant.name
    ]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        work = _prepare(Path(folder), arguments, on_gpu=on_gpu)
        results: dict[str, Result] = {}
        for number in range(arguments.rounds):
            for variant in variants:
                run_dir = Path(folder) / f"{number}-{variants.index(variant)}"
                result = _run(variant, work, run_dir)
                print(json.dumps(asdict(result)), flush=True)
                known = results.get(variant.name)
                if known is None or _speed(result) > _speed(known):
                    results[variant.name] = result
    arguments.output.mkdir(exist_ok=True)
    _write(arguments.output, list(results.values()), work, arguments.rounds)


def _speed(result: Result) -> float:
    return result.learned_tokens_per_cpu_second


@dataclass(frozen=True)
class _Work:
    base_model: Path
    data: Path
    shape_name: str
    shape: ModelShape
    length: int
    packs: int
    examples: int
    epochs: int
    on_gpu: bool
    tokens: int
    learned_tokens: int
    context: float
    """Mean length of the example that a token stands in."""
    matmul_flops: float

    @property
    def file_name(self) -> str:
        place = "gpu" if self.on_gpu else "cpu"
        size = "" if self.shape_name == "tiny" else f"-{self.shape_name}"
        return f"train-{place}{size}"


def _prepare(folder: Path, arguments: argparse.Namespace, *, on_gpu: bool) -> _Work:
    """Make the base model and the data: docstrings of the standard library, cut to the length."""
    rows = [
        {"prompt": f"What does {name} do?", "completion": text}
        for name, text in collect_functions()
    ][:NUM_EXAMPLES]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base_model = folder / "base-model"
    name = arguments.shape or ("7b" if on_gpu else "tiny")
    length = arguments.length or (2048 if on_gpu else 256)
    texts = [row["completion"] for row in rows]
    # The context is the cut: every way gets the same tokens.
    make_base_model(base_model, texts, context=length, shape=SHAPES[name])
    settings = _settings(base_model, data, epochs=1)
    tokenizer = Tokenizer(base_model)
    prepare_data(
        settings,
        tokenizer,
        build_train_speech(settings.base_model, tokenizer),
        context=length,
        folder=folder / "prepared",
        say=print,
    )
    prepared = TokenDataset(folder / "prepared" / "train")
    return _Work(
        base_model,
        data,
        name,
        SHAPES[name],
        length,
        arguments.packs,
        arguments.examples,
        arguments.epochs,
        on_gpu,
        prepared.counts.tokens,
        prepared.counts.learned_tokens,
        float((prepared.lengths**2).sum() / prepared.lengths.sum()),
        _matmul_flops(on_gpu=on_gpu),
    )


def _matmul_flops(*, on_gpu: bool) -> float:
    """Return the known rate of matrix products of this GPU, or the measured one of one core."""
    if on_gpu:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        name = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        return next((rate for gpu, rate in MATMUL_FLOPS.items() if gpu in name), float("nan"))
    code = (
        "import time, torch; torch.set_num_threads(1); a = torch.randn(1536, 1536); best = 1e9\n"
        "for _ in range(8):\n"
        "    start = time.process_time(); a @ a; best = min(best, time.process_time() - start)\n"
        "print(2 * 1536**3 / best)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    measured = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return float(measured.stdout)


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


def _run(variant: Variant, work: _Work, run_dir: Path) -> Result:
    """Run one variant as a process of its own, with one thread on a CPU; watch it from outside."""
    run_dir.mkdir()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["FAST_PATH_OFF"] = variant.off
    if not work.on_gpu:
        environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    settings_path = run_dir / "settings.json"
    micro_batch_size = work.packs if variant.packed else work.examples
    if variant.peer is None:
        settings = _settings(
            work.base_model,
            work.data,
            epochs=work.epochs,
            train_batch_size=micro_batch_size,
            micro_batch_size=micro_batch_size,
            pack_sequences=variant.packed,
            chunk_size=work.length if variant.packed else 2048,
            **dict(variant.settings),
        )
        settings.save(settings_path)
        command = [sys.executable, "-u", "-m", "src.training.worker", str(settings_path)]
    else:
        request = {
            "base_model": str(work.base_model),
            "data": str(work.data),
            "output": str(run_dir / "output"),
            "epochs": work.epochs,
            "micro_batch_size": micro_batch_size,
            "max_length": work.length,
            "packed": variant.packed,
            "learning_rate": 1e-3,
            "bf16": work.on_gpu,
            "use_cpu": not work.on_gpu,
            "liger": variant.liger,
        }
        settings_path.write_text(json.dumps(request))
        program = ROOT / "scripts" / "peers" / variant.peer
        command = [str(PEERS), "-u", str(program), str(settings_path)]
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    steps = list(_watch(process, on_gpu=work.on_gpu))
    process.wait()
    planned = [step.planned for step in steps if step.planned]
    steps = [step for step in steps if not step.planned]
    if process.returncode or len(steps) < 4:
        raise RuntimeError(f"{variant.name} failed with exit code {process.returncode}")
    middle, last = steps[len(steps) // 2 - 1], steps[-1]
    share = (last.step - middle.step) / last.step * work.epochs
    cpu, wall = last.cpu - middle.cpu, last.wall - middle.wall
    flops = flops_per_token(work.shape, lora_rank=8, context=work.context)
    seconds = wall if work.on_gpu else cpu
    return Result(
        variant.name,
        round(work.learned_tokens * share / cpu, 1),
        round(work.tokens * share / cpu, 1),
        round(work.learned_tokens * share / wall, 1),
        round(work.tokens * share / wall, 1),
        round(work.tokens * share / seconds * flops / work.matmul_flops, 3),
        round(steps[0].wall - started, 2),
        round(max(step.memory for step in steps) / 1e9, 3),
        planned[0] if planned else None,
    )


@dataclass(frozen=True)
class _Step:
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
        yield _Step(count, time.monotonic(), cpu, _peak_memory(process.pid, on_gpu=on_gpu))


def _peak_memory(pid: int, *, on_gpu: bool) -> int:
    if on_gpu:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        used = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        return int(used.split()[0]) * 2**20
    status = Path(f"/proc/{pid}/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(peak[1]) * 1024 if peak else 0


def _write(folder: Path, results: list[Result], work: _Work, rounds: int) -> None:
    hardware = machine_name()
    if work.on_gpu:
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        hardware = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    record = {
        "date": date.today().isoformat(),
        "hardware": hardware,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        "command": f"scripts/benchmark {' '.join(sys.argv[1:])}",
        "work": {
            "shape": work.shape_name,
            "examples": NUM_EXAMPLES,
            "longest": work.length,
            "tokens": work.tokens,
            "learned_tokens": work.learned_tokens,
            "matmul_gflops_per_second": round(work.matmul_flops / 1e9, 1),
        },
        "results": [asdict(result) for result in results],
    }
    (folder / f"{work.file_name}.json").write_text(json.dumps(record, indent=2) + "\n")
    lines = [
        f"Training speed, {record['date']}, {hardware}, best of {rounds}, "
        f"model shape {work.shape_name}",
        f"`{record['command']}`",
        "",
        "| | learned tokens / CPU s | tokens / CPU s | learned tokens / s | tokens / s "
        "| share of the limit | first step (s) | peak (GB) | planned (GB) |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {r.name} | {r.learned_tokens_per_cpu_second:,.0f} | {r.tokens_per_cpu_second:,.0f} "
            f"| {r.learned_tokens_per_second:,.0f} | {r.tokens_per_second:,.0f} "
            f"| {r.share_of_limit:.0%} | {r.seconds_to_first_step:.1f} "
            f"| {r.peak_memory_gb:.2f} | {r.planned_memory_gb or '-'} |"
            for r in results
        ),
        "",
        f"The limit is what {work.matmul_flops / 1e9:,.0f} GFLOP/s of matrix products allow.",
    ]
    table = "\n".join(lines) + "\n"
    (folder / f"{work.file_name}.md").write_text(table)
    is_fair = [r for r in results if r.name.startswith(("cog-finetune", "TRL", "Transformers"))]
    if work.on_gpu:
        bars = {r.name: r.learned_tokens_per_second for r in is_fair}
        title = "learned tokens per second"
    else:
        bars = {r.name: r.learned_tokens_per_cpu_second for r in is_fair}
        title = "learned tokens per CPU second"
    flops = flops_per_token(work.shape, lora_rank=8, context=work.context)
    bars["the limit"] = work.matmul_flops / flops * work.learned_tokens / work.tokens
    (folder / f"{work.file_name}.svg").write_text(draw_bars(bars, title))
    print(table)
