"""What a training would do, told by a process of its own."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROWS
from tests.jobs.process import Job


@pytest.fixture
def preview(base_dir: Path):
    """Return a function that returns what the job tells of a file."""

    def run(data: Path, **inputs: Any) -> dict[str, Any]:
        job = Job("src.jobs.preview", BASE_MODEL=str(base_dir), NUM_PROCESSES="1")
        try:
            asked = {"train_data": str(data), **inputs}
            job.send(do="preview", input=asked, names={"train_data": "colours.jsonl"})
            return job.event("end")
        finally:
            job.kill()

    return run


def test_plan_warnings_and_examples_are_told(preview, write_rows):
    told = preview(write_rows([*ROWS, ROWS[0]]), num_train_epochs=2, run_validation=False)
    assert told["error"] is None
    assert any("steps (2 epochs x 7)" in line for line in told["lines"])
    assert any("1 training examples are exact duplicates" in line for line in told["lines"])
    learned = "".join(
        text
        for text, is_control, is_target in told["report"]["examples"][0]
        if is_target and not is_control
    )
    assert learned == ROWS[0]["completion"]
    assert sum(told["report"]["length_counts"]) == len(ROWS) + 1


def test_a_bad_line_is_told_by_the_name_that_the_user_knows(preview, write_rows):
    told = preview(write_rows([ROWS[0], {"prompt": 1, "completion": "a"}]))
    assert told["error"].startswith("colours.jsonl, line 2")
    assert told["report"] is None
