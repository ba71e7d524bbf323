"""Faults at random against Cog's real servers: does all that is promised hold?

`python -m tests.soak.run MINUTES [--seed S] [--output FILE]`
"""

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import date
from importlib.metadata import version
from pathlib import Path

from benchmarks.picture import machine_name
from src.cli.docstrings import docstring_pairs, tokenizer_texts
from src.cli.schema import write_schema
from src.cli.server import ROOT
from src.cli.tiny_model import make_base_model
from tests.soak.files import bad_weights
from tests.soak.lane import Lane, Row
from tests.soak.predictions import SERVERS, Predictions
from tests.soak.server import SoakServer
from tests.soak.trainings import FROZEN_SECONDS, VARIANTS, Trainings
from tests.soak.web import SoakWeb

NUM_EXAMPLES = 24
HEADINGS = {
    "tried": "tried",
    "as_promised": "as promised",
    "refused": "refused as it should",
    "otherwise": "otherwise",
    "processes": "processes left",
    "folders": "folders left",
    "wrong": "wrong answers",
    "not_ready": "not ready",
    "unclear": "unclear errors",
}


def main(arguments: Sequence[str]) -> int:
    """Run the soak and return 1 if anything came out other than promised."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Faults at random")
    parser.add_argument("minutes", type=float, help="for how long faults are made")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a file for the table, as markdown")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        lanes, minutes = soak(Path(folder), options.minutes, options.seed)
    rows = {name: row for lane in lanes for name, row in lane.rows.items()}
    page = "\n".join([*_table(rows), "", *_memory(lanes)])
    print(page)
    if options.output is not None:
        head = [*_head(minutes, options), "", page]
        problems = [f"- {line}" for lane in lanes for line in lane.problems]
        options.output.write_text("\n".join([*head, *["", *problems][: 99 * bool(problems)], ""]))
    return 0 if all(row.is_good() for row in rows.values()) else 1


def soak(folder: Path, minutes: float, seed: int) -> tuple[list[Lane], float]:
    """Run both servers and their actions; return what came of it and the minutes it took."""
    write_schema(ROOT)
    make_base_model(folder / "base", tokenizer_texts())
    environment = {
        "BASE_MODEL": str(folder / "base"),
        "CHECKPOINT_DIR": str(folder / "checkpoints"),
        "WEIGHTS_DIR": str(folder),
        "ALLOW_PRIVATE_URLS": "1",
        "FROZEN_SECONDS": str(FROZEN_SECONDS),
        "NUM_PROCESSES": "2",
    }
    web = SoakWeb({})
    training, prediction = (
        Lane(SoakServer(mode, folder, environment), web, random.Random(f"{seed} {mode}"))
        for mode in ("train", "predict")
    )
    prediction.extra = dict(SERVERS[0])
    # Predictions are short, and would leave the trainings hardly a processor.
    prediction.pause = 2.0
    examples = docstring_pairs()
    data = {
        name: "".join(json.dumps(row) + "\n" for row in examples[start : start + NUM_EXAMPLES])
        for start, name in enumerate(VARIANTS)
    }
    trainings = Trainings(
        training, folder / "checkpoints", {name: text.encode() for name, text in data.items()}
    )
    lanes = [training, prediction]
    try:
        for lane in lanes:
            lane.server.start(**lane.extra)
        trainings.learn()
        # One archive at a time waits for Cog, which reads it after the training.
        training.allowed = 1
        bad = bad_weights(trainings.archives["lora"])
        prompts = [row["prompt"] for row in examples[:NUM_EXAMPLES:6]]
        predictions = Predictions(prediction, prompts, trainings.archives, bad)
        predictions.learn()
        for lane in lanes:
            lane.server.note_memory()
        print("the right answers are known; faults begin", flush=True)
        started, end = time.monotonic(), threading.Event()
        threads = [
            threading.Thread(target=lane.run, args=(actions, end))
            for lane, actions in (
                (training, trainings.actions()),
                (prediction, predictions.actions()),
            )
        ]
        for thread in threads:
            thread.start()
        end.wait(60 * minutes)
        end.set()
        for thread in threads:
            thread.join()
        return lanes, (time.monotonic() - started) / 60
    finally:
        for lane in lanes:
            lane.server.kill_all()


def _table(rows: dict[str, Row]) -> list[str]:
    lines = [f"| action | {' | '.join(HEADINGS.values())} |", "|---" * (len(HEADINGS) + 1) + "|"]
    assert list(HEADINGS) == [field.name for field in fields(Row)]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(f'{n:,}' for n in asdict(row).values())} |")
    total = [sum(asdict(row)[name] for row in rows.values()) for name in HEADINGS]
    return [*lines, f"| all | {' | '.join(f'{n:,}' for n in total)} |"]


def _memory(lanes: list[Lane]) -> list[str]:
    lines = [
        "| server at rest | MB at the start | MB at the end | MB at most |",
        "|---|---|---|---|",
    ]
    for lane in lanes:
        values = " | ".join(f"{value / 1e6:,.0f}" for value in lane.server.memory)
        lines.append(f"| {lane.server.mode} | {values} |")
    return lines


def _head(minutes: float, options: argparse.Namespace) -> list[str]:
    versions = ", ".join(f"{name} {version(name)}" for name in ("cog", "torch", "deepspeed"))
    command = f"scripts/soak {options.minutes:g} --seed {options.seed}"
    return [
        "# Faults at random against the real servers",
        "",
        f"{date.today().isoformat()}, {machine_name()}, Python {platform.python_version()}, "
        f"{versions}. `{command}`: {minutes:.0f} minutes of faults.",
        "",
        "A training as promised gives the adapter of a quiet training with the same inputs, bit "
        "by bit, also when it was killed and resumed; a prediction as promised gives the greedy "
        "answer that a quiet request gave. Columns from *otherwise* on are to be zero.",
    ]


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main(sys.argv[1:]))
