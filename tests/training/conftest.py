"""Ways to train in a test: with forked ranks, or as a server does."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from src.training.supervise.supervisor import run_workers
from tests.training import faults
from tests.training.ranks import run_ranks
from tests.training.runs import on_processes


@pytest.fixture
def new_run_dir(tmp_path: Path) -> Callable[[], Path]:
    """Return a function that makes the folder of another run."""
    numbers = iter(range(100))

    def make() -> Path:
        folder = tmp_path / f"run-{next(numbers)}"
        folder.mkdir()
        return folder

    return make


@pytest.fixture
def train(new_run_dir, make_settings):
    """Return a function that trains with forked ranks and returns the output folder."""

    def run(*, num_processes: int = 1, rows=None, fault: str | None = None, **values) -> Path:
        return run_ranks(
            make_settings(rows, **values),
            new_run_dir(),
            num_processes=num_processes,
            prepare=None if fault is None else partial(faults.install, fault),
        )

    return run


@pytest.fixture
def launch(new_run_dir, make_settings):
    """Return a function that trains with launched and supervised workers, as a server does.

    `FAULT` in the environment lays a fault.
    """

    def run(*, num_processes: int = 2, on_metric=lambda record: None, **values) -> Path:
        return run_workers(
            on_processes(make_settings(**values), num_processes),
            new_run_dir(),
            on_metric=on_metric,
            worker=faults.MODULE,
        )

    return run
