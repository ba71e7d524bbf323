"""Damaged input of every kind ends in a sentence or is taken, at once; `scripts/fuzz` goes on."""

from pathlib import Path
from random import Random

import pytest

from tests.fuzzing import run, targets
from tests.fuzzing.run import fuzz

COUNTS = {"archives": 3000, "adapters": 3000, "lines": 20_000, "requests": 3000}


@pytest.mark.parametrize("name", COUNTS)
def test_damaged_input_never_crashes(name: str):
    tally = fuzz(name, COUNTS[name], seed=1)
    assert tally.failures == 0, tally.first_failure
    assert tally.inputs >= COUNTS[name]
    assert tally.slow <= 1  # the collector of garbage may pass by
    # Neither all damage nor none is harmless: the inputs reach behind the first check.
    num_runs = tally.inputs / targets.INPUTS_A_RUN.get(name, 1)
    assert 0 < tally.taken < 0.9 * num_runs


def test_the_run_sees_crashes_and_slowness(monkeypatch: pytest.MonkeyPatch):
    def bad(rng: Random, folder: Path) -> bool:
        if rng.random() < 0.1:
            sum(range(20_000_000))
        return [True][rng.randrange(2)]

    monkeypatch.setattr(run, "load", lambda name: bad)
    tally = fuzz("bad", 40, seed=1)
    assert tally.failures > 0
    assert "IndexError" in tally.first_failure
    assert tally.slow > 0
