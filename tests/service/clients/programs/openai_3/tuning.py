"""Python `openai` 3: files and fine-tuning jobs."""

import io
import json

import openai
from check import (
    CLIENT,
    DATA,
    STRANGER,
    TOO_LARGE,
    TRAINING,
    WORDS,
    check,
    main,
    raised,
    spoken,
    until,
)

client = openai.OpenAI()
BASE = client.models.list().data[0].id
ENDS = ("succeeded", "failed", "cancelled")
SAY = {
    "model": BASE,
    "messages": [{"role": "user", "content": "Say it."}],
    "max_tokens": 100,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "words", "schema": {"const": WORDS}},
    },
}
ROWS = b"".join(
    json.dumps(
        {
            "messages": [
                {"role": "user", "content": f"What is the colour of number {number}?"},
                {"role": "assistant", "content": "It is red."},
            ]
        }
    ).encode()
    + b"\n"
    for number in range(12)
)


def chat(**values):
    """Return the answer to a chat whose answer is known."""
    return client.chat.completions.create(**{**SAY, **values})


def upload(content=ROWS, name="rows.jsonl"):
    """Return the file of training examples."""
    return client.files.create(file=(name, content), purpose="fine-tune")


def start(**values):
    """Start a job with one epoch."""
    values = {"hyperparameters": {"n_epochs": 1}, "training_file": upload().id, **values}
    return client.fine_tuning.jobs.create(model=BASE, **values)


@check("files.create")
def files():
    """A file is created, processed, found, read, listed and deleted."""
    file = upload()
    assert (file.object, file.filename, file.bytes) == ("file", "rows.jsonl", len(ROWS))
    assert client.files.wait_for_processing(file.id).status == "processed"
    assert client.files.content(file.id).read() == ROWS
    assert file.id in [listed.id for listed in client.files.list(purpose="fine-tune")]
    assert client.files.delete(file.id).deleted is True
    raised(openai.NotFoundError, client.files.retrieve, file.id)


@check("files.create")
def a_file_that_is_too_large():
    """A file that is too large is 413, in OpenAI's form."""
    error = raised(openai.APIStatusError, upload, TOO_LARGE)
    assert error.status_code == 413
    assert error.type == "invalid_request_error"


@check("files.list")
def pages_of_files():
    """Pages go on after the last id, until has_more is false."""
    made = {upload(name=f"{number}.jsonl").id for number in range(3)}
    listed = [file.id for file in client.files.list(limit=2)]
    assert made <= set(listed)
    assert len(set(listed)) == len(listed)


@check("files.create")
def file_of_another():
    """The file of another owner is NotFoundError, also to train on."""
    stranger = openai.OpenAI(api_key=STRANGER)
    file = upload()
    raised(openai.NotFoundError, stranger.files.retrieve, file.id)
    raised(openai.NotFoundError, stranger.files.content, file.id)
    raised(
        openai.APIStatusError,
        stranger.fine_tuning.jobs.create,
        model=BASE,
        training_file=file.id,
    )


@check("fine_tuning.jobs.create")
def train_to_the_end():
    """A job is polled to its end, tells its steps, and its model answers."""
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}
    job = client.fine_tuning.jobs.create(
        model=BASE, training_file=upload().id, suffix=CLIENT, seed=1, method=method
    )
    assert job.id.startswith("ftjob-")
    assert job.status in ("validating_files", "queued", "running")
    jobs = client.fine_tuning.jobs
    job = until(lambda: (found := jobs.retrieve(job.id)).status in ENDS and found, seconds=120)
    assert job.status == "succeeded", job.error
    assert job.finished_at >= job.created_at
    assert job.trained_tokens > 0
    assert CLIENT in job.fine_tuned_model
    events = list(jobs.list_events(job.id, limit=2))
    assert any(event.type == "metrics" and event.data["train_loss"] > 0 for event in events)
    assert [event.created_at for event in events] == sorted(
        (event.created_at for event in events), reverse=True
    )
    assert chat(model=job.fine_tuned_model).choices[0].message.content == spoken(WORDS)
    assert client.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model
    assert jobs.checkpoints.list(job.id).object == "list"


@check("fine_tuning.jobs.cancel")
def cancel():
    """A job with `auto` everywhere is created with defaults, and canceled with two l's."""
    auto = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    job = start(hyperparameters=auto)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"


@check("fine_tuning.jobs.list")
def list_jobs():
    """Jobs are listed, newest first, found by their metadata, and seen by their owner alone."""
    job = start(metadata={"of": CLIENT})
    client.fine_tuning.jobs.cancel(job.id)
    assert job.id in [found.id for found in client.fine_tuning.jobs.list(limit=1)]
    found = client.fine_tuning.jobs.list(metadata={"of": CLIENT})
    assert [one.id for one in found] == [job.id]
    stranger = openai.OpenAI(api_key=STRANGER)
    raised(openai.NotFoundError, stranger.fine_tuning.jobs.retrieve, job.id)


@check("fine_tuning.jobs.create")
def train_on_a_bad_file():
    """A malformed line is refused at once, with its number."""
    bad = upload(ROWS + b"{oops\n")
    error = raised(openai.BadRequestError, start, training_file=bad.id)
    assert "line 13" in error.message, error.message


@check("fine_tuning.jobs.create")
def train_on_nothing():
    """A file that is not there, and a model that is none, are refused."""
    raised(openai.APIStatusError, start, training_file="file-nothing")
    create = client.fine_tuning.jobs.create
    raised(openai.APIStatusError, create, model="nothing", training_file=upload().id)


@check("files.create")
def expiring_file():
    """A file may expire."""
    file = client.files.create(
        file=io.BytesIO(ROWS),
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert file.expires_at - file.created_at == 3600


@check("models.list")
def replicates_versions():
    """A version that was trained through Replicate's API answers here too."""
    until(lambda: any("trained" in model.id for model in client.models.list().data), seconds=120)
    name = next(model.id for model in client.models.list().data if "trained" in model.id)
    assert TRAINING
    assert chat(model=name).choices[0].message.content == spoken(WORDS)


@check("fine_tuning.jobs.create")
def train_on_a_path():
    """A file that is opened by the caller."""
    with open(DATA, "rb") as data:
        file = client.files.create(file=data, purpose="fine-tune")
    job = start(training_file=file.id)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"


main()
