"""The service's figures: `python -m benchmarks.run service [--only NAME,...] [options]`."""

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.picture import machine_name
from benchmarks.service.answers import GREEDY, answers_alone, prompts
from benchmarks.service.figures.create import milliseconds_to_create
from benchmarks.service.figures.crowd import crowd
from benchmarks.service.figures.kills import kill_under_load
from benchmarks.service.figures.overhead import cpu_milliseconds
from benchmarks.service.figures.start import seconds_to_first_prediction
from benchmarks.service.figures.streams import stream_at_once
from benchmarks.service.load import Load
from benchmarks.service.receiver import Told, receiving
from benchmarks.service.running import RunningService
from src.cli.docstrings import tokenizer_texts
from src.cli.server import ROOT
from src.cli.tiny_model import make_base_model

LIBRARIES = ("torch", "starlette", "uvicorn", "sqlalchemy", "httpx")
Rows = dict[str, str]


class Figures:
    """Measures on the tiny model, each figure with a service of its own."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder, self._options = folder, options
        self._base = str(folder / "base")
        make_base_model(folder / "base", tokenizer_texts())

    def start(self) -> Rows:
        """From the command to the first prediction of SmolLM2."""
        seconds = seconds_to_first_prediction(self._folder, rounds=3)
        return {"start to first prediction, SmolLM2": f"{min(seconds):.1f} to {max(seconds):.1f} s"}

    def create(self) -> Rows:
        """Create to 201."""
        found = milliseconds_to_create(self._service("create", 1), (1_000, 10_000, 100_000))
        return {
            f"create to 201, {size:,} rows": f"{_percentiles(times)} ms (p50 / p95)"
            for size, times in found.items()
        }

    def streams(self) -> Rows:
        """Streams at once."""
        number, num_tokens = self._options.streams, 256
        answers = self._answers(number, num_tokens)
        service = self._service("streams", 1)
        service.start()
        try:
            _ready(service)
            found = asyncio.run(stream_at_once(service, answers, num_tokens=num_tokens))
        finally:
            service.end()
        p95 = sorted(found.gaps)[int(0.95 * len(found.gaps))]
        return {
            f"{number} streams at once, wrong": _problems(found.wrong),
            f"{number} streams at once, tokens/s": f"{found.tokens_per_second:,.0f}",
            "gap between tokens of a stream, p95 / longest": f"{1000 * p95:.0f} / "
            f"{1000 * max(found.gaps):.0f} ms "
            f"(limit {5000 * number / found.tokens_per_second:.0f})",
        }

    def kills(self) -> Rows:
        """Kill -9 under load."""
        number = self._options.kills

        async def work(load: Load, told: Told) -> Rows:
            found = await kill_under_load(
                service, load, told, number=number, pause=9, most_trainings=2
            )
            return {
                f"{number} kills, accepted": _shown(found.ledger.counts()),
                f"{number} kills, lost or wrong": _problems(found.ledger.problems),
                "ready after a kill, longest": f"{max(found.ready):.1f} s",
                "last process gone after a kill, longest": f"{max(found.gone):.1f} s",
            }

        service = self._service("kills", 3)
        return self._under_load(service, work, num_tokens=64)

    def crowd(self) -> Rows:
        """Many runs of many owners."""
        options = self._options

        async def work(load: Load, told: Told) -> Rows:
            found = await crowd(
                service, load, predictions=options.predictions, trainings=options.trainings
            )
            return {
                "queued by 5 owners": _shown(found.ledger.counts()),
                "wrong, or seen by another owner": _problems(found.ledger.problems),
                "all accepted / all ended after": f"{found.queued_seconds:.0f} / "
                f"{found.seconds:.0f} s",
            }

        service = self._service("crowd", 5)
        return self._under_load(service, work, num_tokens=16)

    def overhead(self) -> Rows:
        """Processor time beside the engine."""
        service = self._service("overhead", 1)
        service.start()
        try:
            _ready(service)
            return {
                f"CPU of the service per prediction, {way}": f"{spent:.1f} ms"
                for way in ("answer waited for", "answer streamed")
                for spent in [asyncio.run(cpu_milliseconds(service, way, 500))]
            }
        finally:
            service.end()

    def _service(self, name: str, num_owners: int) -> RunningService:
        owners = ("ann", "bob", "cid", "dan", "eve")[:num_owners]
        return RunningService(self._folder / name, self._base, owners)

    def _answers(self, number: int, num_tokens: int) -> dict[str, str]:
        texts = prompts(number)
        inputs = [{"prompt": text, "max_new_tokens": num_tokens, **GREEDY} for text in texts]
        return dict(zip(texts, answers_alone(self._base, inputs), strict=True))

    def _under_load(
        self, service: RunningService, work: Callable[[Load, Told], Any], *, num_tokens: int
    ) -> Rows:
        answers = self._answers(12, num_tokens)

        async def run() -> Rows:
            with receiving() as (hook, told):
                load = Load(service, answers, hook, num_tokens=num_tokens)
                try:
                    return await work(load, told)
                finally:
                    await load.close()

        service.start()
        try:
            return asyncio.run(run())
        finally:
            service.end()


NAMES = ("start", "create", "streams", "kills", "crowd", "overhead")


def main(argv: list[str]) -> None:
    """Measure, and write a table and a JSON file; figures that are not asked for stay."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark service")
    parser.add_argument("--only", default=",".join(NAMES), help=f"some of {','.join(NAMES)}")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--predictions", type=int, default=10_000)
    parser.add_argument("--trainings", type=int, default=50)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks")
    options = parser.parse_args(argv)
    names = options.only.split(",")
    if unknown := set(names) - set(NAMES):
        parser.error(f"--only: expected some of {','.join(NAMES)}, found {','.join(unknown)}")
    os.environ["DTYPE"] = "float32"
    options.output.mkdir(exist_ok=True)
    path = options.output / "service-cpu.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory(prefix="service-", ignore_cleanup_errors=True) as folder:
        figures = Figures(Path(folder), options)
        for name in names:
            record[name] = {
                "date": date.today().isoformat(),
                "hardware": machine_name("all threads"),
                "versions": {"python": platform.python_version()}
                | {library: version(library) for library in LIBRARIES},
                "command": " ".join(["scripts/benchmark service", *argv]),
                "figures": getattr(figures, name)(),
            }
            print(name, json.dumps(record[name]["figures"], indent=2), flush=True)
            _write(options.output, record)


def _write(folder: Path, record: dict[str, Any]) -> None:
    (folder / "service-cpu.json").write_text(json.dumps(record, indent=2) + "\n")
    lines = ["What the service does, on the tiny model where nothing else is said.", ""]
    lines += ["| figure | measured | date | command |", "|---|---|---|---|"]
    for name in (name for name in NAMES if name in record):
        found = record[name]
        lines += [
            f"| {what} | {value} | {found['date']} | `{found['command']}` |"
            for what, value in found["figures"].items()
        ]
    last = next(reversed(record.values()))
    versions = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    lines += ["", f"{last['hardware']}; {versions}.", ""]
    (folder / "service-cpu.md").write_text("\n".join(lines))


def _ready(service: RunningService) -> None:
    with service.client("ann") as client:
        inputs = {"prompt": "?", "max_new_tokens": 1}
        waits = {"Prefer": "wait"}
        client.post(
            "/v1/models/meta/llama-2-7b-chat/predictions", json={"input": inputs}, headers=waits
        )


def _percentiles(times: Sequence[float]) -> str:
    ordered = sorted(times)
    return f"{statistics.median(ordered):.1f} / {ordered[int(0.95 * len(ordered))]:.1f}"


def _shown(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in counts.items())


def _problems(problems: list[str]) -> str:
    for problem in problems[:20]:
        print(problem)
    return str(len(problems))
