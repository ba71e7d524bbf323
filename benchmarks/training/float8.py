"""What an adapter loses when it is trained beside frozen weights in float8.

Two runs of the same steps, one with `BASE_WEIGHTS=fp8`; both adapters are then measured by
Transformers and PEFT on the base model as it is. On a CPU float8 is emulated.
`python -m benchmarks.run float8 [--steps N] [--output DIR]`
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from benchmarks.shapes import REAL_MODEL
from benchmarks.training.device import device_name
from benchmarks.training.work import plain_settings
from src.cli.docstrings import docstring_pairs
from src.cli.server import ROOT
from src.data.prepare import open_datasets
from src.data.token_file import TokenDataset
from src.environment import read_train_environment
from src.training.plan.resources import count_devices
from src.training.supervise.run_folder import RunFolder
from src.weights.base_model.base_model import find_base_model

BATCH, NUM_VALIDATION = 8, 100
LEARNING_RATE = 5e-4


@dataclass(frozen=True)
class Result:
    """Validation losses of one run."""

    base_weights: str
    before: float
    """Of the base model, as it is in the run."""
    after: float
    """With the adapter, as in the run."""
    on_base: float
    """With the adapter, on the base model in float32."""


def main(argv: list[str]) -> None:
    """Train and measure both, and write a table and a JSON file."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark float8")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks")
    arguments = parser.parse_args(argv)
    base_model = find_base_model({**os.environ, "BASE_MODEL": REAL_MODEL}).folder
    pairs = docstring_pairs()
    rows = [*pairs[: BATCH * arguments.steps], *pairs[-NUM_VALIDATION:]]
    on_gpu = count_devices()[1]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        data = Path(folder, "data.jsonl")
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        precision = {} if on_gpu else {"DTYPE": "float32"}
        asked = {"as they are": precision, "float8": {**precision, "BASE_WEIGHTS": "fp8"}}
        results = [
            _run(Path(folder, name), name, environ, base_model, data, on_gpu=on_gpu)
            for name, environ in asked.items()
        ]
    _write(arguments.output, results, arguments.steps, on_gpu=on_gpu)


def _run(
    folder: Path,
    name: str,
    environ: dict[str, str],
    base_model: Path,
    data: Path,
    *,
    on_gpu: bool,
) -> Result:
    folder.mkdir()
    settings = plain_settings(
        base_model,
        data,
        epochs=1,
        train_batch_size=BATCH,
        micro_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        learning_rate_schedule="cosine",
        run_validation=True,
        num_validation_samples=NUM_VALIDATION,
        validation_batch_size=BATCH,
        environment=replace(read_train_environment(environ), on_gpus=on_gpu),
    )
    settings.save(folder / "settings.json")
    command = [sys.executable, "-m", "src.training.worker", str(folder / "settings.json")]
    threads = {} if on_gpu else {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env={**os.environ, **threads}, check=True)
    run = RunFolder(folder)
    records = map(json.loads, (run.output / "metrics.jsonl").read_text().splitlines())
    before, *_, after = [record["eval_loss"] for record in records if "eval_loss" in record]
    _, validation_data = open_datasets(run.data)
    result = Result(name, before, after, _loss_on_base(base_model, run.output, validation_data))
    print(json.dumps(asdict(result)), flush=True)
    return result


@torch.no_grad()
def _loss_on_base(base_model: Path, adapter: Path, dataset: TokenDataset) -> float:
    """Return the loss of each target token, as Transformers and PEFT compute it in float32."""
    base = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    total = 0.0
    for start, stop in zip(dataset.offsets, dataset.offsets[1:], strict=False):
        ids, labels = (
            torch.from_numpy(tokens[start:stop].astype(np.int64))
            for tokens in (dataset.input_ids, dataset.labels)
        )
        is_target = torch.from_numpy(np.array(dataset.loss_mask[start:stop]))
        scores = model(ids[None]).logits[0]
        total += float(cross_entropy(scores[is_target], labels[is_target], reduction="sum"))
    return total / dataset.counts.learned_tokens


def _write(folder: Path, results: list[Result], num_steps: int, *, on_gpu: bool) -> None:
    plain, float8 = results
    hardware = device_name(on_gpu=on_gpu)
    command = f"scripts/benchmark float8 --steps {num_steps}"
    record = {
        "date": date.today().isoformat(),
        "hardware": hardware,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "command": command,
        "results": [asdict(result) for result in results],
        "lost": float8.on_base / plain.on_base - 1,
    }
    lines = [
        f"Frozen weights in float8{'' if on_gpu else ', emulated'}, {record['date']}, {hardware}, "
        f"torch {version('torch')}, {REAL_MODEL}",
        f"`{command}`",
        "",
        "| frozen weights in training | validation loss before | after | its adapter on the base "
        "model in float32 |",
        "|---|---|---|---|",
        *(f"| {r.base_weights} | {r.before:.4f} | {r.after:.4f} | {r.on_base:.4f} |"
          for r in results),
        "",
        f"The adapter trained in float8 ends {float8.on_base / plain.on_base - 1:+.2%} from the "
        f"other, both on the base model in float32. Computing in float8 costs "
        f"{float8.before / plain.before - 1:+.2%} of the loss before and "
        f"{float8.after / float8.on_base - 1:+.2%} after training.",
    ]  # fmt: skip
    name = f"float8-{'gpu' if on_gpu else 'cpu'}"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
    print(*lines, sep="\n")
