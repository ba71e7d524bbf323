"""Python `replicate` before 1.0: versions, predictions and run."""

import json

import replicate
from check import (
    BASE,
    BREAKS,
    CHAT,
    CLIENT,
    FAILS,
    GUIDE_VERSION,
    LONG,
    RECEIVER,
    WORDS,
    check,
    hooks,
    is_completed,
    main,
    raised,
    say,
    spoken,
)
from replicate.exceptions import ModelError, ReplicateError


def chat():
    """Return the chat model's version."""
    return replicate.models.get(CHAT).versions.list()[0]


def reference():
    """Return owner/name:id of the chat model."""
    return f"{CHAT}:{chat().id}"


@check("models.versions.list")
def versions():
    """A version has what the client validates: an id, a time, a cog_version and a schema."""
    version = chat()
    assert len(version.id) == 64
    assert version.created_at.tzinfo is not None
    assert isinstance(version.cog_version, str)
    assert "Output" in version.openapi_schema["components"]["schemas"]


@check("models.versions.get")
def version_by_id():
    """A version is found by its id."""
    version = chat()
    assert replicate.models.get(CHAT).versions.get(version.id).id == version.id


@check("models.versions.get")
def version_of_the_guides():
    """The version that the guides print is taken as the current one."""
    version = replicate.models.get(BASE).versions.get(GUIDE_VERSION)
    assert "Input" in version.openapi_schema["components"]["schemas"]


@check("run")
def run():
    """`run` polls, and joins to the whole answer."""
    assert "".join(replicate.run(reference(), input=say(WORDS))) == spoken(WORDS)


@check("run")
def run_keeps_all_characters():
    """Polled output keeps characters that look like ends of lines."""
    assert "".join(replicate.run(reference(), input=say(BREAKS))) == spoken(BREAKS)


@check("run")
def run_fails():
    """A prediction that fails raises ModelError with one sentence."""
    error = raised(ModelError, lambda: list(replicate.run(reference(), input=FAILS)))
    assert "no-such-weights.tar" in str(error), error


@check("run", but="0.8.4 0.15.4")
def run_by_name():
    """`run` of a name without a version answers too."""
    assert "".join(replicate.run(CHAT, input=say(WORDS))) == spoken(WORDS)


@check("version.predict", but="0.25.2")
def version_predict():
    """`version.predict()`, the call before `run`, answers."""
    assert "".join(chat().predict(**say(WORDS))) == spoken(WORDS)


@check("predictions.create")
def create_and_wait():
    """A prediction starts without output, and ends with output, logs and times."""
    prediction = replicate.predictions.create(version=chat(), input=say(WORDS))
    assert prediction.status == "starting"
    assert prediction.output is None
    prediction.wait()
    assert prediction.status == "succeeded", prediction.error
    assert "".join(prediction.output) == spoken(WORDS)
    assert prediction.created_at <= prediction.started_at <= prediction.completed_at


@check("predictions.get")
def get():
    """A prediction is found by its id, with its input."""
    prediction = replicate.predictions.create(version=chat(), input=say(WORDS))
    assert replicate.predictions.get(prediction.id).input == say(WORDS)


@check("predictions.list")
def list_predictions():
    """The newest prediction comes first."""
    prediction = replicate.predictions.create(version=chat(), input=say(WORDS))
    assert prediction.id in [listed.id for listed in replicate.predictions.list()]


@check("predictions.cancel")
def cancel():
    """A running prediction is canceled for good."""
    prediction = replicate.predictions.create(version=chat(), input=LONG)
    prediction.cancel()
    prediction.wait()
    assert prediction.status == "canceled"


@check("predictions.create")
def create_with_a_webhook():
    """`webhook_completed`, which only old clients send, is told the end and nothing else."""
    key = f"{CLIENT}-completed"
    replicate.predictions.create(
        version=chat(), input=say(WORDS), webhook_completed=f"{RECEIVER}/hook/{key}"
    )
    came = hooks(key, until=is_completed)
    assert len(came) == 1
    assert json.loads(came[0]["body"])["status"] == "succeeded"


@check("predictions.create")
def create_with_a_wrong_input():
    """An input of a wrong type is refused, in words that name it."""
    wrong = {"prompt": "Hello", "max_new_tokens": "many"}
    error = raised(ReplicateError, replicate.predictions.create, version=chat(), input=wrong)
    assert "max_new_tokens" in str(error), error


@check("predictions.get")
def get_nothing():
    """An unknown id is an error with a sentence, not with a page of HTML."""
    error = raised(ReplicateError, replicate.predictions.get, "a" * 26)
    assert "could not be found" in str(error), error


@check("stream", but="0.8.4 0.15.4")
def stream():
    """Streamed events make up the whole answer."""
    events = list(replicate.stream(CHAT, input=say(WORDS)))
    assert "".join(str(event) for event in events) == spoken(WORDS)
    assert events[-1].event.value == "done"


main()
