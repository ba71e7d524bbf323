"""The lines and numbers of a run hold for every batch, also for one with nothing to learn."""

import json
from pathlib import Path

import pytest

from src.training.results.metrics import Progress


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    return Progress(tmp_path / "metrics.jsonl", num_steps=4)


def step(progress: Progress, number: int, *, loss_sum: float, weight_sum: float) -> None:
    progress.step(
        step=number, epoch=1.0, loss_sum=loss_sum, weight_sum=weight_sum, tokens=10,
        learning_rate=1e-4, gradient_norm=1.0,
    )  # fmt: skip


def test_a_step_without_target_tokens_is_logged_with_the_next(progress: Progress):
    step(progress, 1, loss_sum=6.0, weight_sum=3.0)
    step(progress, 2, loss_sum=0.0, weight_sum=0.0)
    step(progress, 3, loss_sum=4.0, weight_sum=4.0)
    step(progress, 4, loss_sum=0.0, weight_sum=0.0)
    assert progress.path is not None
    records = [json.loads(line) for line in progress.path.read_text().splitlines()]
    assert [(record["step"], record["loss"]) for record in records] == [(1, 2.0), (3, 1.0)]
    assert progress.train_loss == 1.0


def test_a_resumed_run_knows_its_losses(progress: Progress):
    step(progress, 1, loss_sum=6.0, weight_sum=3.0)
    progress.validation(step=1, epoch=1.0, loss=1.5, reply=None)
    resumed = Progress(None, num_steps=4)
    resumed.resume(json.loads(json.dumps(progress.state())))
    assert (resumed.train_loss, resumed.validation_loss) == (2.0, 1.5)
    assert resumed.state() == progress.state()


def test_a_validation_records_what_there_is(progress: Progress):
    """Without validation data there is only a reply; without either there is nothing to record."""
    progress.validation(step=1, epoch=0.5, loss=1.5, reply="Blue.")
    progress.validation(step=2, epoch=1.0, loss=None, reply="Red.")
    progress.validation(step=3, epoch=1.5, loss=None, reply=None)
    assert progress.path is not None
    assert [json.loads(line) for line in progress.path.read_text().splitlines()] == [
        {"step": 1, "epoch": 0.5, "eval_loss": 1.5, "sample": "Blue."},
        {"step": 2, "epoch": 1.0, "sample": "Red."},
    ]
    assert progress.validation_loss == 1.5
