"""Serving speed on SmolLM2 beside its peers, each in its best type, in one run.

`python -m benchmarks.run serve-trace [--tokens N] [--output DIR]`
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.picture import machine_name
from benchmarks.serving.gaps import measure_gaps, show_gaps
from benchmarks.serving.trace.ways import OURS, WAYS, Way, tokens_per_second
from benchmarks.serving.trace.work import RealWork, even_requests, mixed_requests
from benchmarks.serving.work import make_adapters
from benchmarks.shapes import REAL_MODEL, SHAPES
from src.cli.server import ROOT
from src.serving.engine.engine import Engine
from src.weights.base_model.base_model import find_base_model

PROMPT_TOKENS = 32
EVEN_LOADS = ((1, 1), (1, 2), (8, 2))
"""Clients and threads."""
MIXED_LOADS = ((1, 0), (8, 0), (32, 0), (32, 8))
"""Clients and adapters."""
Row = dict[str, Any]


def main(argv: list[str]) -> None:
    """Run all ways in turn, each in a process of its own, and write tables and a JSON file."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark serve-trace")
    parser.add_argument("--tokens", type=int, default=64, help="of answers of one length")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks")
    arguments = parser.parse_args(argv)
    base_model = find_base_model({**os.environ, "BASE_MODEL": REAL_MODEL}).folder
    vocab_size = SHAPES[REAL_MODEL].vocab_size
    most_threads = len(os.sched_getaffinity(0))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)

        def measure(way: Way, requests: list, load: Row, adapters: list[str]) -> None:
            work = RealWork(str(base_model), way.dtype, requests, adapters)
            speed = tokens_per_second(way, work, folder, threads=load["threads"])
            rows.append({**load, "way": way.name, "tokens_per_second": speed})
            print(rows[-1], file=sys.stderr, flush=True)

        for clients, threads in EVEN_LOADS:
            load = {"lengths": "even", "clients": clients, "adapters": 0}
            load["threads"] = min(threads, most_threads)
            for way in WAYS:
                if way.is_for_even:
                    requests = even_requests(
                        clients, prompt=PROMPT_TOKENS, answer=arguments.tokens,
                        vocab_size=vocab_size,
                    )  # fmt: skip
                    measure(way, requests, load, [])
        adapters, _ = make_adapters(folder, base_model)
        for clients, num_adapters in MIXED_LOADS:
            load = {"lengths": "mixed", "clients": clients, "adapters": num_adapters}
            load["threads"] = most_threads
            for way in WAYS:
                if way.is_for_mixed and (way.has_adapters or not num_adapters):
                    requests = mixed_requests(
                        clients, vocab_size=vocab_size, num_adapters=num_adapters
                    )
                    measure(way, requests, load, adapters if num_adapters else [])
    engine = Engine(base_model, dtype="bfloat16", can_speculate=False)
    gaps = measure_gaps(engine)
    engine.close()
    record = {
        "date": date.today().isoformat(),
        "hardware": machine_name(f"{most_threads} threads"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "peers": {way.name: way.version for way in WAYS if way.version},
        "command": f"scripts/benchmark serve-trace --tokens {arguments.tokens}",
        "tokens": arguments.tokens,
        "speeds": rows,
        "gaps": gaps,
    }
    arguments.output.mkdir(exist_ok=True)
    (arguments.output / "serve-trace-cpu.json").write_text(json.dumps(record, indent=2) + "\n")
    table = "\n".join(_lines(record)) + "\n"
    (arguments.output / "serve-trace-cpu.md").write_text(table)
    print(table)


def _lines(record: Row) -> list[str]:
    versions = ", ".join(f"{n} {v}" for n, v in [*record["versions"].items()])
    peers = ", ".join(f"{name} {known}" for name, known in record["peers"].items())
    return [
        f"Serving speed of {REAL_MODEL}, {record['date']}, {record['hardware']}, {versions}; "
        f"{peers}",
        f"`{record['command']}`: greedy, tokens/s of all answers together; all clients ask at "
        "once. A way that could not run here has a dash.",
        "",
        f"Prompts of {PROMPT_TOKENS} tokens, answers of {record['tokens']}.",
        "",
        *_table(record, "even"),
        "",
        "Log-normal lengths with a quarter of the means that Kwon et al. (2023, PagedAttention, "
        "figure 11) report of ShareGPT, 161 tokens of prompt and 338 of answer, sigma 1, seeds "
        "fixed. For `generate` and PEFT a load is one padded batch.",
        "",
        *_table(record, "mixed"),
        "",
        f"In bfloat16: {show_gaps(record['gaps'])}",
    ]


def _table(record: Row, lengths: str) -> list[str]:
    rows = [row for row in record["speeds"] if row["lengths"] == lengths]
    loads = list(dict.fromkeys(_load(row) for row in rows))
    found = {(row["way"], _load(row)): row["tokens_per_second"] for row in rows}
    ways = list(dict.fromkeys(row["way"] for row in rows))
    best = {
        load: max(s for (way, at), s in found.items() if s and at == load and OURS in way)
        for load in loads
    }
    lines = [f"| | {' | '.join(loads)} |", "|---" * (len(loads) + 1) + "|"]
    for way in ways:
        cells = []
        for load in loads:
            speed = found.get((way, load))
            ratio = "" if OURS in way or not speed else f" ({best[load] / speed:.1f} x)"
            cells.append(f"{speed:,.1f}{ratio}" if speed else "-")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return [*lines, "", "In parentheses: how many times as fast the better type of ours is."]


def _load(row: Row) -> str:
    words = [f"{row['clients']} client{'s' * (row['clients'] > 1)}"]
    words += [f"{row['adapters']} adapters"] if row["adapters"] else []
    words += [f"{row['threads']} thread{'s' * (row['threads'] > 1)}"]
    return ", ".join(words)
