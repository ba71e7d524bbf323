"""Serving speed on SmolLM2 beside Transformers' generate, each in its best dtype, in one run.

`python -m benchmarks.run serve-real [--tokens N] [--rounds N] [--output DIR]`
"""

import argparse
import json
import os
import random
import subprocess
import sys
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.picture import machine_name
from benchmarks.serving.ours import asking_anew, measure
from benchmarks.shapes import REAL_MODEL, SHAPES
from src.cli.server import ROOT
from src.serving.engine.engine import Engine
from src.weights.base_model.base_model import find_base_model

PROMPT_TOKENS = 32
CLIENTS = (1, 8, 32)
DTYPES = ("bfloat16", "float32")
OURS, THEIRS = "cog-finetune", "transformers.generate"
Answer = Callable[[list[list[int]], int], Callable[[], list[list[int]]]]
"""Takes prompts and how many tokens are wanted, and returns what asks for them."""


def main(argv: list[str]) -> None:
    """Run all ways in turn, each in a process of its own, and write a table."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark serve-real")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each answer")
    parser.add_argument("--rounds", type=int, default=2, help="the best of so many is kept")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks")
    arguments = parser.parse_args(argv)
    folder = find_base_model({**os.environ, "BASE_MODEL": REAL_MODEL}).folder
    most_threads = len(os.sched_getaffinity(0))
    threads = sorted({1, most_threads})
    lines = [
        f"Serving speed of {REAL_MODEL}, {date.today()}, {machine_name(f'{most_threads} threads')},"
        f" torch {version('torch')}, transformers {version('transformers')}, "
        f"best of {arguments.rounds}",
        f"`scripts/benchmark serve-real --tokens {arguments.tokens} --rounds {arguments.rounds}`: "
        f"greedy, prompts of {PROMPT_TOKENS} tokens, answers of {arguments.tokens}; the prompts of "
        "several clients are one batch for Transformers. Tokens/s, and in the last column those "
        "of the best dtype of each.",
        "",
        f"| clients, threads | {' | '.join(f'{way}, {d}' for way, d in _ways())} | ratio |",
        f"|{'---|' * 6}",
    ]
    for clients, number in product(CLIENTS, threads):
        found = {
            way: max(
                _run(folder, *way, number, clients, arguments.tokens)
                for _ in range(arguments.rounds)
            )
            for way in _ways()
        }
        best = {name: max(found[name, dtype] for dtype in DTYPES) for name in (OURS, THEIRS)}
        speeds = " | ".join(f"{speed:,.1f}" for speed in found.values())
        lines.append(f"| {clients}, {number} | {speeds} | {best[OURS] / best[THEIRS]:.1f} |")
        print(lines[-1], flush=True)
        if clients == 1:
            shape = SHAPES[REAL_MODEL]
            weight_bytes = 2 * (shape.linear_parameters + shape.vocab_size * shape.hidden_size)
            limit = _bandwidth(number, arguments.tokens) / weight_bytes
            first = 1 / _run(folder, OURS, "bfloat16", number, clients, 1)
            seconds = arguments.tokens / found[OURS, "bfloat16"] - first
            speed = (arguments.tokens - 1) / seconds
            lines.append(
                f"| behind the first token, and its limit, reading the weights once a token "
                f"| {speed:,.1f} of {limit:,.1f} ({speed / limit:.0%}) | | | | |"
            )
    arguments.output.mkdir(exist_ok=True)
    table = "\n".join(lines) + "\n"
    (arguments.output / "serve-real-cpu.md").write_text(table)
    print(table)


def _ways() -> Iterator[tuple[str, str]]:
    return product((OURS, THEIRS), DTYPES)


def _run(folder: Path, way: str, dtype: str, threads: int, clients: int, tokens: int) -> float:
    """Return the tokens per second of one way, in a process of its own."""
    asked = [str(folder), way, dtype, str(threads), str(clients), str(tokens)]
    command = [sys.executable, "-m", "benchmarks.serving.real_model", *asked]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return json.loads(done.stdout.splitlines()[-1])


def _speed(folder: Path, way: str, dtype: str, clients: int, tokens: int) -> float:
    """Return the tokens per second of so many clients at once."""
    rng = random.Random(clients)
    vocab_size = SHAPES[REAL_MODEL].vocab_size
    prompts = [
        [rng.randrange(20, vocab_size) for _ in range(PROMPT_TOKENS)] for _ in range(clients)
    ]
    with (_ours if way == OURS else _theirs)(folder, dtype) as answer:
        is_exact = way == THEIRS and dtype == "float32"
        speeds = measure(answer(prompts, tokens), clients * tokens, is_exact=is_exact)
    return speeds["tokens_per_second"]


@contextmanager
def _ours(folder: Path, dtype: str) -> Iterator[Answer]:
    engine = Engine(folder, dtype=dtype, can_speculate=False)
    yield lambda prompts, tokens: asking_anew(engine, prompts, [None] * len(prompts), tokens)
    engine.close()


@contextmanager
def _theirs(folder: Path, dtype: str) -> Iterator[Answer]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    @torch.inference_mode()
    def generate(prompts: list[list[int]], tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
            min_new_tokens=tokens, do_sample=False, pad_token_id=0,
        )  # fmt: skip
        return output[:, PROMPT_TOKENS:].tolist()

    yield lambda prompts, tokens: partial(generate, prompts, tokens)


def _bandwidth(threads: int, num_reads: int) -> float:
    """Return the bytes that so many threads read in a second, of as much as the weights.

    They read as long as an answer does: for moments a machine reads faster than it keeps up.
    """
    torch.set_num_threads(threads)
    data = torch.ones(2**26)
    return num_reads * data.nbytes / min(timeit.repeat(data.sum, number=num_reads, repeat=10))


if __name__ == "__main__":
    path, *words = sys.argv[1:]
    print(json.dumps(_speed(Path(path), words[0], words[1], int(words[3]), int(words[4]))))
