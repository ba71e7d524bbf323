"""Python `replicate` before 1.0: trainings, and what else there is."""

import io
from pathlib import Path

import replicate
from check import (
    ABORTED,
    CHAT,
    CLIENT,
    DATA,
    DESTINATION,
    OWNER,
    PRINTED,
    STRANGER,
    TRAINING,
    WORDS,
    check,
    main,
    raised,
    say,
    spoken,
    until,
)
from replicate.exceptions import ReplicateError

ROWS = '{"prompt": "What?", "completion": "It is red."}\n' * 8


def chat():
    """Return the chat model's version."""
    return replicate.models.get(CHAT).versions.list()[0]


def train(data, **values):
    """Start a training of the guides' version."""
    return replicate.trainings.create(
        version=PRINTED,
        input={"train_data": data, "num_train_epochs": 1},
        destination=DESTINATION,
        **values,
    )


def canceled(training):
    """Cancel a training, and return it as the service shows it then."""
    training.cancel()
    return replicate.trainings.get(training.id)


@check("predictions.get")
def get_of_an_aborted_one():
    """The end `aborted`, which the client does not know, is shown to it as canceled."""
    assert replicate.predictions.get(ABORTED).status == "canceled"


@check("predictions.get")
def get_of_a_training():
    """A training answers below /predictions too, as its `urls` say."""
    assert replicate.predictions.get(TRAINING).id == TRAINING


@check("Client")
def wrong_token():
    """A wrong token is told as Replicate tells it."""
    client = replicate.client.Client(api_token="r8_wrong")
    error = raised(ReplicateError, client.predictions.list)
    assert "You did not pass a valid authentication token" in str(error), error


@check("Client")
def token_of_another():
    """Another owner does not see the prediction."""
    prediction = replicate.predictions.create(version=chat(), input=say(WORDS))
    client = replicate.client.Client(api_token=STRANGER)
    raised(ReplicateError, client.predictions.get, prediction.id)
    assert prediction.id not in [listed.id for listed in client.predictions.list()]


@check("trainings.create", but="0.25.2")
def train_on_a_file():
    """A file's handle arrives as a data URL without a media type, and is read."""
    with Path(DATA).open("rb") as data:
        training = train(data)
    assert training.status == "starting"
    assert training.destination in (None, DESTINATION)
    assert canceled(training).status == "canceled"


@check("trainings.create", but="0.25.2")
def train_on_bytes():
    """A file without a name arrives as a data URL of octets, and is read."""
    assert canceled(train(io.BytesIO(ROWS.encode()))).status == "canceled"


@check("trainings.create", but="0.25.2")
def train_on_a_bad_file():
    """A file with a bad line is refused at once, with file and line."""
    error = raised(ReplicateError, train, io.BytesIO(b'{"prompt": 1}\n'))
    assert "line 1" in str(error), error


@check("trainings.create")
def train_with_a_wrong_input():
    """An unknown or impossible input is refused before anything runs."""
    error = raised(
        ReplicateError,
        replicate.trainings.create,
        version=PRINTED,
        input={"train_data": "data:None;base64,", "num_train_epochs": 0},
        destination=DESTINATION,
    )
    assert "num_train_epochs" in str(error), error


@check("trainings.create")
def train_for_nobody():
    """A destination that is not there is refused in Replicate's words."""
    error = raised(
        ReplicateError,
        replicate.trainings.create,
        version=PRINTED,
        input={"train_data": "data:None;base64,"},
        destination=f"{OWNER}/nothing",
    )
    assert "The specified training destination does not exist" in str(error), error


@check("trainings.get")
def train_to_the_end():
    """A training is polled to its end, and its version answers."""
    ends = ("succeeded", "failed", "canceled")
    training = until(
        lambda: (found := replicate.trainings.get(TRAINING)).status in ends and found, seconds=120
    )
    assert training.status == "succeeded", training.error
    assert training.output["weights"].startswith("http")
    assert "step" in training.logs
    output = replicate.run(training.output["version"], input={"prompt": "What?", "seed": 0})
    assert "".join(output)


@check("trainings.list")
def list_trainings():
    """Trainings are listed, whatever their state."""
    assert TRAINING in [training.id for training in replicate.trainings.list()]


@check("deployments.get().predictions.create", but="0.8.4")
def deployment():
    """A prediction by the name of a deployment."""
    prediction = replicate.deployments.get(f"{OWNER}/deployed").predictions.create(say(WORDS))
    prediction.wait()
    assert "".join(prediction.output) == spoken(WORDS)


@check("models.create", but="0.8.4 0.15.4")
def create_model():
    """A model is created as the guide does it, and a second one of the name is refused."""
    made = {"owner": OWNER, "name": f"{CLIENT}-made", "visibility": "private", "hardware": "cpu"}
    assert replicate.models.create(**made).visibility == "private"
    raised(ReplicateError, replicate.models.create, **made)


@check("hardware.list", but="0.8.4 0.15.4")
def hardware():
    """There is hardware to choose from."""
    assert all(found.sku and found.name for found in replicate.hardware.list())


@check("paginate", but="0.8.4 0.15.4")
def paginate():
    """Pages lead on by cursors, and no prediction comes twice."""
    pages = [page.results for page in replicate.paginate(replicate.predictions.list)]
    ids = [prediction.id for page in pages for prediction in page]
    assert len(pages) > 1
    assert len(set(ids)) == len(ids)


main()
