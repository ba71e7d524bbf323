"""The results of a job: its metrics as a CSV, made of what the database keeps of the training."""

import base64
import csv
import io
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from src.service.store.runs import Run, find_run, list_points
from src.service.times import unix_time

PREFIX = "file-results-"
COLUMNS: Sequence[str] = (
    "step",
    "train_loss",
    "train_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
)
"""OpenAI's; accuracies are not measured, and empty."""


def result_id(job_id: str) -> str:
    """Return the id of the file that holds a job's results."""
    return PREFIX + job_id.removeprefix("ftjob-")


def is_result(file_id: str) -> bool:
    """Whether an id is that of results."""
    return file_id.startswith(PREFIX)


def find_result(connection: Connection, file_id: str, owner: str) -> dict[str, Any] | None:
    """Return the file of an owner's job as OpenAI's clients read it; None where there is none."""
    run = _find_job(connection, file_id, owner)
    if run is None:
        return None
    return {
        "id": file_id,
        "object": "file",
        "bytes": len(write_result(connection, file_id, owner) or ""),
        "created_at": unix_time(run.completed_at),
        "filename": "step_metrics.csv",
        "purpose": "fine-tune-results",
        "status": "processed",
        "status_details": None,
    }


def write_result(
    connection: Connection, file_id: str, owner: str, is_plain: bool = False
) -> str | None:
    """Return the CSV of an owner's job, in base64 unless `is_plain`; None where there is none."""
    run = _find_job(connection, file_id, owner)
    if run is None:
        return None
    steps: dict[int, dict[str, Any]] = {}
    for point in list_points(connection, run.id):
        step = steps.setdefault(point.record["step"], {"step": point.record["step"]})
        for name, column in (("loss", "train_loss"), ("eval_loss", "valid_loss")):
            if name in point.record:
                step[column] = point.record[name]
    text = io.StringIO()
    table = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    table.writeheader()
    table.writerows(steps[number] for number in sorted(steps))
    return text.getvalue() if is_plain else base64.b64encode(text.getvalue().encode()).decode()


def _find_job(connection: Connection, file_id: str, owner: str) -> Run | None:
    run = find_run(connection, "ftjob-" + file_id.removeprefix(PREFIX), owner)
    return run if run is not None and run.status == "succeeded" else None
