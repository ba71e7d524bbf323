"""Rank processes that are forked from one that has made their imports: a run takes a second.

A launched rank spends most of its time importing torch, transformers, DeepSpeed and PEFT. The fork
server has imported them and has run no tensor operation, so its forks are as good as new processes.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from src.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = [
    *("pytest", "peft", "bitsandbytes", "transformers.models.llama.modeling_llama"),
    *("src.training.worker", __name__),
]
ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class RanksFailed(Exception):
    """At least one rank ended with another code than 0; the message is all that the ranks said."""

    def __init__(self, said: str, exit_codes: list[int | None]) -> None:
        super().__init__(said)
        self.exit_codes = exit_codes


def run_ranks(
    settings: TrainSettings,
    run_dir: Path,
    *,
    num_processes: int = 1,
    prepare: Callable[[], None] | None = None,
) -> Path:
    """Train with forked ranks and return the folder of the finished adapter.

    `prepare` is called in each rank before it begins. Raises RanksFailed.
    """
    settings.save(run_dir / "settings.json")
    call_in_ranks(_train, run_dir, prepare, num_processes=num_processes, log=run_dir / "log")
    return run_dir / "output"


def call_in_ranks(
    function: Callable[..., None], *arguments: object, num_processes: int = 1, log: Path
) -> None:
    """Call a function in forked ranks; what they print goes into `log`, and is printed here.

    When a rank fails, the others are killed, as a launcher does, and RanksFailed is raised.
    """
    sizes = {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    common = {**os.environ, **ENVIRONMENT, **sizes, "MASTER_PORT": str(_free_port())}
    ranks = [
        _server().Process(
            target=_call,
            args=(
                {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                log.with_suffix(f".{rank}"),
                function,
                arguments,
            ),
        )
        for rank in range(num_processes)
    ]
    for process in ranks:
        process.start()
    try:
        while all(process.exitcode in (None, 0) for process in ranks) and (
            running := [process.sentinel for process in ranks if process.exitcode is None]
        ):
            wait(running)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    said = "".join(path.read_text() for path in sorted(log.parent.glob(f"{log.name}.*")))
    log.write_text(said)
    print(said, end="", flush=True)
    if any(process.exitcode for process in ranks):
        raise RanksFailed(said, [process.exitcode for process in ranks])


@cache
def _server() -> ForkServerContext:
    """Return the context of a fork server that has made the imports of a rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}.items():
            patch.setenv(name, value)
        process = context.Process(target=_do_nothing)  # starts the server
        process.start()
        process.join()
    assert process.exitcode == 0
    return context


def _do_nothing() -> None:
    """What the first process of the server does."""


def _call(
    environment: dict[str, str], log: Path, function: Callable[..., None], arguments: tuple
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    function(*arguments)


def _train(run_dir: Path, prepare: Callable[[], None] | None) -> None:
    from src.training.worker import main

    if prepare is not None:
        prepare()
    main(run_dir / "settings.json")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
