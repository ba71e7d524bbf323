"""Python `replicate` 1.0: predictions."""

import json
import os
import time
from urllib.error import HTTPError

import replicate
from check import (
    ABORTED,
    API,
    BASE,
    CHAT,
    CLIENT,
    HASTY,
    LONG,
    OWNER,
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
    throttled,
)
from replicate.exceptions import ReplicateError

VERSION = replicate.models.get(CHAT).latest_version.id
REFERENCE = f"{CHAT}:{VERSION}"


def done(**values):
    """Create a prediction, and return it at its end."""
    prediction = replicate.predictions.create(**values)
    prediction.wait()
    return prediction


def streamed(events):
    """Return text and last event of a stream whose events all have an id."""
    events = list(events)
    assert all(event.id for event in events)
    return "".join(str(event) for event in events), events[-1]


@check("predictions.create")
def create_by_version():
    """A new prediction has all fields, and no output yet."""
    prediction = replicate.predictions.create(version=VERSION, input=say(WORDS))
    assert len(prediction.id) == 26
    assert prediction.status == "starting"
    assert prediction.output is None
    assert prediction.logs == ""
    assert prediction.error is None
    assert prediction.created_at.endswith("Z")
    assert prediction.urls["get"].startswith(API)
    assert prediction.urls["cancel"].startswith(API)


@check("predictions.create")
def create_by_reference():
    """owner/name:id is taken as version."""
    assert done(version=REFERENCE, input=say(WORDS)).status == "succeeded"


@check("models.predictions.create")
def create_by_model():
    """A prediction by name has a version that is no null."""
    prediction = replicate.models.predictions.create(model=CHAT, input=say(WORDS))
    assert prediction.model == CHAT
    assert prediction.version


@check("deployments.predictions.create")
def create_by_deployment():
    """A prediction by a deployment's name."""
    prediction = replicate.deployments.predictions.create(f"{OWNER}/deployed", say(WORDS))
    prediction.wait()
    assert "".join(prediction.output) == spoken(WORDS)


@check("predictions.create")
def create_and_wait():
    """With wait the answer is whole: `succeeded` with all the output."""
    prediction = replicate.predictions.create(version=VERSION, input=say(WORDS), wait=30)
    assert prediction.status == "succeeded"
    assert "".join(prediction.output) == spoken(WORDS)
    assert prediction.metrics["predict_time"] > 0
    assert prediction.metrics["total_time"] >= prediction.metrics["predict_time"]


@check("predictions.create")
def create_and_wait_too_short():
    """When the wait is over the answer is `starting` without output, although it runs."""
    started = time.monotonic()
    prediction = replicate.predictions.create(version=VERSION, input=LONG, wait=1)
    assert time.monotonic() - started < 20
    assert prediction.status == "starting"
    assert prediction.output is None
    prediction.cancel()


@check("predictions.create")
def create_with_the_deprecated_stream():
    """`stream=True` is taken, and there is a stream either way."""
    for values in ({}, {"stream": True}):
        prediction = replicate.predictions.create(version=VERSION, input=say(WORDS), **values)
        assert prediction.urls["stream"].startswith(API)


@check("predictions.create")
def create_with_webhooks():
    """The filter holds: start and completed, in order, and nothing else."""
    key = f"{CLIENT}-filter"
    replicate.predictions.create(
        version=VERSION,
        input=say(WORDS),
        webhook=f"{RECEIVER}/hook/{key}",
        webhook_events_filter=["start", "completed"],
    )
    bodies = [json.loads(hook["body"]) for hook in hooks(key, until=is_completed)]
    assert [body["status"] for body in bodies] == ["processing", "succeeded"]
    assert "".join(bodies[1]["output"]) == spoken(WORDS)


@check("predictions.create")
def create_with_a_wrong_input():
    """All that is wrong stands in `detail`, one line for each input."""
    wrong = {"temperature": 9, "top_k": "all"}
    error = raised(ReplicateError, replicate.predictions.create, version=VERSION, input=wrong)
    assert error.status == 422
    assert error.title == "Input validation failed"
    for name in ("prompt", "temperature", "top_k"):
        assert name in error.detail, error.detail
    assert "- input.temperature:" in error.detail


@check("predictions.create")
def create_with_an_unknown_version():
    """An unknown version is refused with Replicate's title."""
    error = raised(ReplicateError, replicate.predictions.create, version="f" * 64, input={})
    assert error.status == 422
    assert error.title == "Invalid version or not permitted"


@check("predictions.get")
def get_of_an_aborted_one():
    """The end `aborted`, which the client does not know, is shown to it as canceled."""
    assert replicate.predictions.get(ABORTED).status == "canceled"


@check("predictions.get")
def get_of_a_training():
    """A training's `urls` lead below /predictions, and answer."""
    assert replicate.predictions.get(TRAINING).id == TRAINING


@check("predictions.get")
def get_nothing():
    """An unknown id is 404 with a detail."""
    error = raised(ReplicateError, replicate.predictions.get, "a" * 26)
    assert error.status == 404
    assert error.detail


@check("predictions.get")
def get_of_another():
    """The prediction of another owner is 404."""
    prediction = replicate.predictions.create(version=VERSION, input=say(WORDS))
    stranger = replicate.Client(api_token=STRANGER)
    assert raised(ReplicateError, stranger.predictions.get, prediction.id).status == 404
    assert raised(ReplicateError, stranger.predictions.cancel, prediction.id).status == 404


@check("prediction.cancel")
def cancel():
    """A canceled prediction stays canceled, and keeps what came."""
    prediction = replicate.predictions.create(version=VERSION, input=LONG)
    prediction.cancel()
    prediction.wait()
    assert prediction.status == "canceled"
    assert prediction.error is None
    prediction.cancel()
    assert prediction.status == "canceled"


@check("prediction.output_iterator")
def output_iterator():
    """Output only grows: the chunks of all polls make up the answer."""
    prediction = replicate.predictions.create(version=VERSION, input=say(WORDS))
    assert "".join(prediction.output_iterator()) == spoken(WORDS)


@check("predictions.list")
def list_predictions():
    """Pages lead on by absolute cursors, and no prediction comes twice."""
    pages = list(replicate.paginate(replicate.predictions.list))
    ids = [prediction.id for page in pages for prediction in page]
    assert len(pages) > 1
    assert len(pages[0]) == 100
    assert len(set(ids)) == len(ids)
    assert pages[0].next.startswith(API)
    assert pages[-1].next is None
    back = replicate.predictions.list(pages[1].previous)
    assert [prediction.id for prediction in back][-1] == pages[0][-1].id


@check("prediction.stream")
def stream_without_a_token():
    """The stream's address is enough: it cannot be guessed, and asks for no token."""
    prediction = done(version=VERSION, input=say(WORDS))
    status, headers, text = ask(prediction.urls["stream"])
    assert status == 200
    assert headers["Content-Type"].startswith("text/event-stream")
    assert b"event: done" in text
    assert raised(HTTPError, ask, prediction.urls["stream"][:-1] + "_").code == 404


@check("prediction.stream")
def stream_of_a_canceled_one():
    """A canceled prediction's stream ends with done and the reason."""
    prediction = replicate.predictions.create(version=VERSION, input=LONG)
    prediction.cancel()
    assert json.loads(streamed(prediction.stream())[1].data) == {"reason": "canceled"}


@check("Client(base_url)")
def base_url_with_v1():
    """An address that ends in /v1 works, although the client adds one."""
    client = replicate.Client(base_url=f"{API}/v1")
    assert "".join(client.run(BASE, input=say(WORDS))) == spoken(WORDS)
    page = client.predictions.list()
    assert client.predictions.list(page.next).results


@check("predictions.create")
def create_too_often():
    """Who asks too often is told so in Replicate's words, and nothing is created."""
    hasty = replicate.Client(api_token=HASTY)
    values = {"version": VERSION, "input": {**say(WORDS), "seed": 7}}
    made = []
    error = throttled(lambda: made.append(hasty.predictions.create(**values).id))
    assert error.status == 429
    assert error.detail.startswith("Request was throttled. Your rate limit resets in ~")
    listed = [found.id for found in hasty.predictions.list() if found.input.get("seed") == 7]
    assert sorted(listed) == sorted(made)


@check("Client")
def no_token():
    """Without a token every route answers 401."""
    token = os.environ.pop("REPLICATE_API_TOKEN")
    try:
        error = raised(ReplicateError, replicate.Client().predictions.list)
    finally:
        os.environ["REPLICATE_API_TOKEN"] = token
    assert error.status == 401
    assert error.detail == "You did not pass a valid authentication token"


main()
