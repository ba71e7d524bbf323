"""A base model that two processes share answers as one does, and ends with any of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from src.errors import RankLost, UserError
from src.model.partition import build_empty
from src.serving.engine.engine import Engine
from src.serving.parallel.size import ranks_needed
from src.serving.sampling import SamplingParams
from tests.serving.clients import GREEDY, Client, random_prompts
from tests.serving.test_preemption import cache_bytes
from tests.test_process_tree import is_alive

LONG = replace(GREEDY, max_new_tokens=240)
KINDS = [
    replace(GREEDY, max_new_tokens=32),
    SamplingParams(max_new_tokens=32, seed=3, min_new_tokens=32),
    SamplingParams(max_new_tokens=32, seed=4, top_k=9, repetition_penalty=1.5),
]


def follower_of(pid: int) -> psutil.Process:
    return next(
        child
        for child in psutil.Process(pid).children()
        if "src.serving.parallel.follower" in child.cmdline()
    )


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_answers_are_those_of_one_process(engine, new_engine, loaded):
    """In company, with adapters, canceled and preempted ones; some are greedy, some drawn."""
    split = new_engine(tensor_parallel=2, cache_bytes=cache_bytes(engine, 10) / 2)
    prompts = random_prompts(18, engine.vocab_size, seed=9)
    adapters = [None, *loaded.values()]

    def ask(engine: Engine) -> list[list[int]]:
        clients = [
            Client(engine, prompt, KINDS[n % 3], adapter=adapters[n % len(adapters)])
            for n, prompt in enumerate(prompts)
        ]
        for client in clients[5::6]:
            client.cancel()
        return [client.answer() for n, client in enumerate(clients) if n % 6 != 5]

    expected = ask(engine)
    assert ask(split) == expected
    assert split.totals.num_preempted > 0
    # Adapters that made room for others come again.
    assert ask(split) == expected


def test_a_rank_that_dies_ends_the_engine_and_answers_all(new_engine):
    engine = new_engine(tensor_parallel=2)
    clients = [Client(engine, [number] * 20, LONG, ignores_end=True) for number in range(3, 19)]
    clients[0].read(3)
    follower_of(os.getpid()).kill()
    for client in clients:
        client.read()
        assert client.end is not None
        assert client.end.reason == "error"
        assert str(client.end.error) == "rank 1 of 2 was killed by SIGKILL"
    with pytest.raises(RuntimeError, match="the engine is closed"):
        Client(engine, [5])
    engine._thread.join(10)
    with pytest.raises(RuntimeError, match="the engine has stopped"):
        engine.check_alive()


def test_an_idle_engine_notices_that_a_rank_is_gone(new_engine):
    engine = new_engine(tensor_parallel=2)
    follower_of(os.getpid()).kill()
    engine._thread.join(10)
    assert not engine._thread.is_alive()


def test_close_leaves_no_process(new_engine):
    engine = new_engine(tensor_parallel=2)
    follower = follower_of(os.getpid())
    Client(engine, [5, 6, 7]).answer()
    engine.close()
    assert not is_alive(follower.pid)


def test_followers_end_with_a_killed_engine(base_dir: Path):
    code = (
        "import sys, time; from pathlib import Path; from src.serving.engine.engine import Engine\n"
        "engine = Engine(Path(sys.argv[1]), dtype='float32', tensor_parallel=2)\n"
        "print('up', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(base_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        wait_for(lambda: "up" in process.stdout.readline())
        follower = follower_of(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for(lambda: not is_alive(follower.pid))


def test_a_rank_that_cannot_load_is_a_sentence(new_engine, monkeypatch):
    monkeypatch.setattr("src.serving.parallel.followers.ROOT", Path(__file__).parent)
    with pytest.raises(RankLost, match=r"^rank 1 of 2 ended with code 1$"):
        new_engine(tensor_parallel=2)


def test_a_model_is_split_between_gpus_where_it_does_not_fit_on_one(base_dir: Path):
    num_bytes = 4 * sum(p.numel() for p in build_empty(base_dir).parameters())
    for gpu_bytes, expected in ((1.3 * num_bytes, 1), (num_bytes, 2), (num_bytes / 4, 2)):
        # It has two key/value heads.
        assert ranks_needed(base_dir, 4, gpu_bytes, torch.float32) == expected


def test_what_cannot_be_split_is_refused(new_engine):
    with pytest.raises(UserError, match=r"^TENSOR_PARALLEL: expected a number that divides .* 4$"):
        new_engine(tensor_parallel=4)
    with pytest.raises(UserError, match=r"^TENSOR_PARALLEL: expected 1 beside BASE_MODEL_IN_4BIT"):
        new_engine(tensor_parallel=2, in_4bit=True)
