"""Jobs, their events and their checkpoints as OpenAI's clients read them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row

from src.service.openai.jobs.results import result_id
from src.service.store.runs import Run
from src.service.times import unix_time

STATUS = {
    "starting": "queued",
    "processing": "running",
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "cancelled",
    "aborted": "cancelled",
}
LAST = 10**9
"""The number of the last events, which no step reaches."""
Shape = dict[str, Any]


def render_job(row: Run) -> Shape:
    """Return a job."""
    job, has_succeeded = row.job, row.status == "succeeded"
    error = None
    if row.status == "failed":
        error = {"code": "training_failed", "message": row.error or "", "param": None}
    return {
        "id": row.id,
        "object": "fine_tuning.job",
        "created_at": unix_time(row.created_at),
        "finished_at": row.completed_at and unix_time(row.completed_at),
        "model": job["model"],
        "fine_tuned_model": job["fine_tuned_model"] if has_succeeded else None,
        "organization_id": row.owner,
        "status": STATUS[row.status],
        "training_file": job["training_file"],
        "validation_file": job["validation_file"],
        "hyperparameters": job["hyperparameters"],
        "method": {
            "type": "supervised",
            "supervised": {"hyperparameters": job["hyperparameters"]},
        },
        "trained_tokens": row.metrics.get("trained_tokens") if has_succeeded else None,
        "result_files": [result_id(row.id)] if has_succeeded else [],
        "seed": job["seed"],
        "error": error,
        "estimated_finish": None,
        "integrations": [],
        "metadata": job["metadata"],
        "user_provided_suffix": job["suffix"] or None,
    }


def render_events(row: Run, points: Sequence[Row[Any]]) -> list[Shape]:
    """Return what has happened to a job, the newest first; an event keeps its id."""
    created, started = unix_time(row.created_at), row.started_at and unix_time(row.started_at)
    ended = row.completed_at and unix_time(row.completed_at)
    events = [
        _event(row, 0, created, f"Created fine-tuning job: {row.id}"),
        _event(row, 1, created, f"Files validated, job {row.id} is queued"),
    ]
    if started:
        events.append(_event(row, 2, started, "Fine-tuning job started"))
    num_steps, trained = row.metrics.get("num_steps"), {}
    for point in points:
        metrics = step_metrics(point.record)
        # Whoever reads the metrics of a validation looks for the loss of its step too.
        trained = {"train_loss": metrics["train_loss"]} if "train_loss" in metrics else trained
        data = {**metrics, **trained} if trained else None
        text = _describe(point.record, num_steps)
        events.append(_event(row, 10 + point.number, int(point.created_at), text, data=data))
    match row.status:
        case "succeeded":
            name = row.job["fine_tuned_model"]
            events.append(_event(row, LAST, ended, f"New fine-tuned model created: {name}"))
            text = "The job has successfully completed"
            events.append(_event(row, LAST + 1, ended, text))
        case "failed":
            text = f"The job failed: {row.error}"
            events.append(_event(row, LAST, ended, text, level="error"))
        case "canceled" | "aborted":
            events.append(_event(row, LAST, ended, "Fine-tuning job cancelled"))
    return events[::-1]


def render_checkpoints(row: Run, points: Sequence[Row[Any]]) -> list[Shape]:
    """Return the one checkpoint that a job leaves: its fine-tuned model."""
    if row.status != "succeeded":
        return []
    metrics: Shape = {}
    for point in points:
        metrics |= step_metrics(point.record)
    return [
        {
            "id": f"ftckpt_{row.id.removeprefix('ftjob-')}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": unix_time(row.completed_at),
            "fine_tuned_model_checkpoint": row.job["fine_tuned_model"],
            "fine_tuning_job_id": row.id,
            "step_number": metrics.get("step", 0),
            "metrics": metrics,
        }
    ]


def step_metrics(record: Shape) -> Shape:
    """Return what a training reports of a step, in OpenAI's words."""
    names = {"loss": "train_loss", "eval_loss": "valid_loss"}
    return {names.get(name, name): value for name, value in record.items() if name != "sample"}


def _describe(record: Shape, num_steps: int | None) -> str:
    step = f"{record['step']}/{num_steps}" if num_steps else str(record["step"])
    if "loss" in record:
        return f"Step {step}: training loss={record['loss']:.2f}"
    if "eval_loss" in record:
        return f"Step {step}: validation loss={record['eval_loss']:.2f}"
    return f"Step {step}: validation sample: {record.get('sample', '')[:500]}"


def _event(
    row: Run,
    number: int,
    created_at: int,
    message: str,
    *,
    level: str = "info",
    data: Shape | None = None,
) -> Shape:
    return {
        "id": f"ftevent-{row.id.removeprefix('ftjob-')}-{number}",
        "object": "fine_tuning.job.event",
        "created_at": created_at,
        "level": level,
        "message": message,
        "type": "message" if data is None else "metrics",
        "data": data or {},
    }
