"""Serving speed beside Transformers' and PEFT's: the same model, prompts and adapters in one run.

`python -m benchmarks.run serve [--tokens N] [--rounds N] [--output DIR]`
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.picture import draw_bars, machine_name
from benchmarks.serving.gaps import show_gaps
from benchmarks.serving.work import PROMPT_TOKENS, make_work
from src.cli.server import ROOT

OURS = "cog-finetune"
LIBRARIES = ("torch", "transformers", "peft")
PEERS = ROOT / "benchmarks" / "peers" / "transformers_generate.py"
Speeds = dict[str, dict[str, Any]]


def main(argv: list[str]) -> None:
    """Run all ways in turn and write a table, a JSON file and a picture."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark serve")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each answer")
    parser.add_argument("--rounds", type=int, default=2, help="the best of so many is kept")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks")
    arguments = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        work = make_work(Path(folder), arguments.tokens)
        work.save(Path(folder) / "work.json")
        weight_bytes = work.weight_bytes
        rounds = [_round(Path(folder)) for _ in range(arguments.rounds)]
        bandwidth = _bandwidth(Path(folder))
    record = {
        "date": date.today().isoformat(),
        "hardware": machine_name(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        "command": f"scripts/benchmark serve --tokens {arguments.tokens} "
        f"--rounds {arguments.rounds}",
        "work": {"prompt_tokens": PROMPT_TOKENS, "new_tokens": arguments.tokens},
        "weight_bytes": weight_bytes,
        "memory_bytes_per_second": round(bandwidth),
        "speeds": _best(rounds),
        "seconds_to_first_token": {
            way: {str(n): _percentiles(_all(rounds, place, "first token", n)) for n in times}
            for way, place in ((OURS, "ours"), ("transformers.generate", "peers"))
            for times in [rounds[0][place]["first token"]]
        },
        "next_turn": {n: round(s, 4) for n, s in rounds[0]["ours"]["next turn"].items()},
        "gaps": min((found["ours"]["gaps"] for found in rounds), key=lambda g: g["longest_beside"]),
        "seconds_to_first_token_with_adapter": {
            name: _percentiles(_all(rounds, place, "adapter", name))
            for place in ("ours", "peers")
            for name in rounds[0][place]["adapter"]
        },
    }
    arguments.output.mkdir(exist_ok=True)
    _write(arguments.output, record)


def _round(folder: Path) -> dict[str, Any]:
    """Run each program as a process of its own with one thread."""
    found = {}
    for name, program in (("ours", ["-m", "benchmarks.serving.ours"]), ("peers", [str(PEERS)])):
        result = folder / f"{name}.json"
        subprocess.run(
            [sys.executable, *program, str(folder / "work.json"), str(result)],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            check=True,
        )
        found[name] = json.loads(result.read_text())
    return found


def _best(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the best speed of each way at each load, and whether its answers are the same."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for found in rounds:
        ours: Speeds = {k: v for k, v in found["ours"].items() if "clients" in k}
        ways = {OURS: ours, f"{OURS}, not looking ahead": found["ours"]["not looking ahead"]} | {
            way: speeds
            for way, speeds in found["peers"].items()
            if way not in ("first token", "adapter")
        }
        for way, speeds in ways.items():
            for load, speed in speeds.items():
                same = sum(
                    a == b for a, b in zip(speed["answers"], ours[load]["answers"], strict=False)
                )
                row = {
                    "way": way,
                    "load": load,
                    "tokens_per_second": round(speed["tokens_per_second"], 1),
                    "tokens_per_cpu_second": round(speed["tokens_per_cpu_second"], 1),
                    "same_answers": f"{same}/{len(ours[load]['answers'])}",
                }
                known = best.get((way, load))
                speed_of = "tokens_per_cpu_second"
                if known is None or row[speed_of] > known[speed_of]:
                    best[way, load] = row
    return sorted(best.values(), key=lambda row: _clients(row["load"]))


def _clients(load: str) -> tuple[int, ...]:
    return tuple(int(word) for word in load.split() if word.isdigit())


def _all(rounds: Sequence[Mapping[str, Any]], place: str, what: str, name: str) -> list[float]:
    return [seconds for found in rounds for seconds in found[place][what][name]]


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50": round(statistics.median(ordered), 4),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 4),
    }


def _bandwidth(folder: Path) -> float:
    """Return the bytes that one thread reads in a second, over as much as the model's weights."""
    program = (
        "import timeit, torch; torch.set_num_threads(1); x = torch.ones(2**22)\n"
        "print(x.nbytes / min(timeit.repeat(x.sum, number=1, repeat=200)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def _write(folder: Path, record: dict[str, Any]) -> None:
    (folder / "serve-cpu.json").write_text(json.dumps(record, indent=2) + "\n")
    limit = record["memory_bytes_per_second"] / record["weight_bytes"]
    lines = [
        f"Serving speed, {record['date']}, {record['hardware']}, best of its rounds",
        f"`{record['command']}`: greedy, prompts of {record['work']['prompt_tokens']} tokens, "
        f"answers of {record['work']['new_tokens']}. Quoting: that share of the answer stands in "
        "the prompt, whole or in pieces of 24 tokens.",
        "",
        "| clients and adapters | | tokens / s | tokens / CPU s | same answers |",
        "|---|---|---|---|---|",
        *(
            f"| {row['load']} | {row['way']} | {row['tokens_per_second']:,.0f} "
            f"| {row['tokens_per_cpu_second']:,.0f} | {row['same_answers']} |"
            for row in record["speeds"]
        ),
        "",
        f"Reading the weights once a token, this machine's memory limits one client to "
        f"{limit:,.0f} tokens/s ({record['memory_bytes_per_second'] / 1e9:.0f} GB/s, one thread).",
        "",
        "| first token after (ms, p50 / p95) | "
        + " | ".join(f"{n} tokens" for n in record["seconds_to_first_token"][OURS])
        + " |",
        "|---" * (len(record["seconds_to_first_token"][OURS]) + 1) + "|",
        *(
            f"| {way} | " + " | ".join(map(_milliseconds, times.values())) + " |"
            for way, times in record["seconds_to_first_token"].items()
        ),
        f"| {OURS}, next turn of a dialogue | "
        + " | ".join(f"{1000 * s:,.1f}" for s in record["next_turn"].values())
        + " | |",
        "",
        show_gaps(record["gaps"]),
        "",
        "| first token with an adapter that is | ms, p50 / p95 |",
        "|---|---|",
        *(
            f"| {name} | {_milliseconds(times)} |"
            for name, times in record["seconds_to_first_token_with_adapter"].items()
        ),
    ]
    table = "\n".join(lines) + "\n"
    (folder / "serve-cpu.md").write_text(table)
    bars = {
        f"{row['way']}, {row['load'].split(',')[0]}": row["tokens_per_cpu_second"]
        for row in record["speeds"]
        if row["load"] in ("1 clients, 0 adapters", "8 clients, 0 adapters")
    }
    picture = draw_bars(bars, "tokens per CPU second, without an adapter")
    (folder / "serve-cpu.svg").write_text(picture)
    print(table, time.strftime("%H:%M"))


def _milliseconds(times: Mapping[str, float]) -> str:
    return f"{1000 * times['p50']:,.1f} / {1000 * times['p95']:,.1f}"
