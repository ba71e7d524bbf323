"""Python `replicate` 1.0: trainings, and the webhooks of trainings."""

import io
import json
from pathlib import Path

import replicate
from check import (
    BASE,
    CLIENT,
    DATA,
    DESTINATION,
    GUIDE_VERSION,
    OWNER,
    PRINTED,
    RECEIVER,
    STRANGER,
    TRAINING,
    WORDS,
    ask,
    check,
    hooks,
    is_completed,
    main,
    raised,
    say,
    spoken,
    until,
)
from replicate.exceptions import ReplicateError

ROWS = b'{"prompt": "What?", "completion": "It is red."}\n' * 8


def train(**values):
    """Start a training of the guides' version."""
    values = {"version": PRINTED, "destination": DESTINATION, **values}
    return replicate.trainings.create(**values)


def canceled(training):
    """Whether a training is canceled, and stays so."""
    training.cancel()
    assert training.status == "canceled"
    training.reload()
    return training.status == "canceled"


def refused(**values):
    """Return the error of a training that does not start."""
    return raised(ReplicateError, train, **values)


@check("trainings.create")
def train_on_a_file():
    """A handle is uploaded, and the service knows its own file's address in the input."""
    with Path(DATA).open("rb") as data:
        training = train(input={"train_data": data})
    assert training.status == "starting"
    assert "/v1/files/" in training.input["train_data"]
    assert training.model == BASE
    assert canceled(training)


@check("trainings.create")
def train_on_a_data_url():
    """A file in the body is taken as well."""
    values = {"train_data": io.BytesIO(ROWS)}
    training = train(input=values, file_encoding_strategy="base64")
    assert canceled(training)


@check("trainings.create")
def train_by_model():
    """Model and version as two arguments, the destination as a pair."""
    training = replicate.trainings.create(
        model=("meta", "llama-2-7b"),
        version=GUIDE_VERSION,
        input={"train_data": io.BytesIO(ROWS)},
        destination=(OWNER, "trained"),
    )
    assert canceled(training)


@check("trainings.create")
def train_by_position():
    """The old order of arguments."""
    values = {"train_data": io.BytesIO(ROWS)}
    assert canceled(replicate.trainings.create(PRINTED, values, DESTINATION))


@check("trainings.create")
def train_for_nobody():
    """A destination that is not there, or another's, is refused in Replicate's words."""
    for destination in (f"{OWNER}/nothing", "stranger/model"):
        error = refused(input={"train_data": io.BytesIO(ROWS)}, destination=destination)
        assert error.status == 404
        assert error.detail == "The specified training destination does not exist"


@check("trainings.create")
def train_with_wrong_inputs():
    """Unknown names, wrong types and impossible values are refused before anything runs."""
    for name, value in (("epochs", 3), ("num_train_epochs", "three"), ("lora_dropout", 2)):
        error = refused(input={"train_data": io.BytesIO(ROWS), name: value})
        assert error.status == 422
        assert name in error.detail, error.detail


@check("trainings.create")
def train_on_a_bad_file():
    """A malformed line is refused at once, with its number."""
    error = refused(input={"train_data": io.BytesIO(ROWS + b"{oops\n")})
    assert error.status == 422
    assert "line 9" in error.detail, error.detail


@check("training.reload")
def train_to_the_end():
    """Logs only grow; the output comes at the end, whole, and the version answers."""
    training = replicate.trainings.get(TRAINING)
    logs = ""

    def ended():
        nonlocal logs
        training.reload()
        assert training.logs.startswith(logs)
        logs = training.logs
        return training.status in ("succeeded", "failed", "canceled")

    until(ended, seconds=120)
    assert training.status == "succeeded", training.error
    assert training.destination == DESTINATION
    version = training.output["version"]
    assert replicate.models.get(DESTINATION).versions.get(version.split(":")[1])
    assert "".join(replicate.run(version, input=say(WORDS))) == spoken(WORDS)
    assert "".join(replicate.run(DESTINATION, input=say(WORDS))) == spoken(WORDS)


@check("training.output")
def weights():
    """The weights' address gives the archive without a token, and works as replicate_weights."""
    until(lambda: replicate.trainings.get(TRAINING).status == "succeeded", seconds=120)
    output = replicate.trainings.get(TRAINING).output
    status, _, archive = ask(output["weights"])
    assert status == 200
    assert len(archive) > 1000
    greedy = {"prompt": "What?", "temperature": 0, "max_new_tokens": 20}
    merged = replicate.run(output["version"], input=greedy)
    named = replicate.run(BASE, input={**greedy, "replicate_weights": output["weights"]})
    assert "".join(merged) == "".join(named)


@check("trainings.list")
def list_trainings():
    """Trainings are listed as a page, also while they run."""
    page = replicate.trainings.list()
    assert TRAINING in [training.id for training in page]
    assert page.previous is None


@check("trainings.get")
def training_of_another():
    """The training of another owner is 404, also to cancel."""
    stranger = replicate.Client(api_token=STRANGER)
    assert raised(ReplicateError, stranger.trainings.get, TRAINING).status == 404
    assert raised(ReplicateError, stranger.trainings.cancel, TRAINING).status == 404


@check("trainings.create")
def train_with_a_webhook():
    """A training's end is told, as GET shows it."""
    key = f"{CLIENT}-training"
    training = train(
        input={"train_data": io.BytesIO(ROWS)},
        webhook=f"{RECEIVER}/hook/{key}",
        webhook_events_filter=["completed"],
    )
    training.cancel()
    told = json.loads(hooks(key, until=is_completed)[-1]["body"])
    assert (told["id"], told["status"]) == (training.id, "canceled")


main()
