"""Python `replicate` 2.0 beta: run, use and predictions."""

import asyncio
import time
import warnings

import replicate
from check import (
    ABORTED,
    API,
    BREAKS,
    CHAT,
    FAILS,
    LONG,
    OWNER,
    STRANGER,
    TRAINING,
    WORDS,
    check,
    main,
    raised,
    say,
    spoken,
)
from replicate.exceptions import ModelError

client = replicate.Replicate()
OF_CHAT = {"model_owner": "meta", "model_name": "llama-2-7b-chat"}
VERSION = client.models.get(**OF_CHAT).latest_version.id


@check("run")
def run():
    """`run` waits, and answers with the list of chunks."""
    assert "".join(client.run(CHAT, input=say(WORDS))) == spoken(WORDS)


@check("run")
def run_by_version():
    """`run` of owner/name:id answers too."""
    assert "".join(client.run(f"{CHAT}:{VERSION}", input=say(WORDS))) == spoken(WORDS)


@check("run")
def run_by_polling():
    """`run` with wait=False polls to the end."""
    assert "".join(client.run(CHAT, input=say(BREAKS), wait=False)) == spoken(BREAKS)


@check("run")
def run_fails():
    """A prediction that fails raises ModelError with one sentence."""
    error = raised(ModelError, client.run, CHAT, input=FAILS)
    assert "no-such-weights.tar" in str(error)


@check("use")
def use():
    """`use` joins the chunks to one string, for the schema says concatenate."""
    assert replicate.use(CHAT)(**say(WORDS)) == spoken(WORDS)


@check("use")
def use_streaming():
    """`use` with streaming polls, and loses no chunk."""
    chunks = list(replicate.use(f"{CHAT}:{VERSION}", streaming=True)(**say(BREAKS)))
    assert "".join(chunks) == spoken(BREAKS)


@check("stream")
def stream():
    """`stream`, which is deprecated, still answers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chunks = list(client.stream(CHAT, input=say(WORDS)))
    assert "".join(chunks) == spoken(WORDS)


@check("AsyncReplicate.run")
async def run_async():
    """Many awaited runs at once each get their own answer."""
    texts = [f"It is {number}." for number in range(8)]
    async with replicate.AsyncReplicate() as runs:
        outputs = await asyncio.gather(*(runs.run(CHAT, input=say(text)) for text in texts))
    assert ["".join(output) for output in outputs] == [spoken(text) for text in texts]


@check("predictions.create")
def create():
    """A new prediction has all fields that Replicate's own description requires."""
    prediction = client.predictions.create(version=VERSION, input=say(WORDS))
    assert prediction.status == "starting"
    assert prediction.data_removed is False
    assert prediction.urls.get.startswith(API)
    assert prediction.urls.web
    assert prediction.source == "api"
    assert prediction.created_at.tzinfo is not None


@check("predictions.create")
def create_and_wait():
    """`prefer` waits for the whole answer, within the client's 60 seconds."""
    prediction = client.predictions.create(version=VERSION, input=say(WORDS), prefer="wait=30")
    assert prediction.status == "succeeded"
    assert "".join(prediction.output) == spoken(WORDS)


@check("predictions.create")
def create_and_wait_too_short():
    """When the wait is over one prediction is there, starting, and no second one."""
    prediction = client.predictions.create(version=VERSION, input=LONG, prefer="wait=1")
    assert prediction.status == "starting"
    assert prediction.output is None
    client.predictions.cancel(prediction_id=prediction.id)


@check("predictions.create")
def create_with_a_deadline():
    """`cancel_after` sets a deadline, at which a running prediction is canceled."""
    prediction = client.predictions.create(version=VERSION, input=LONG, cancel_after="5s")
    seconds = (prediction.deadline - prediction.created_at).total_seconds()
    assert seconds == 5
    started = time.monotonic()
    assert client.predictions.wait(prediction.id).status == "canceled"
    assert time.monotonic() - started > 3


@check("predictions.wait")
def wait_for_an_aborted_one():
    """The end `aborted`, for which the client would wait on, is shown to it as canceled."""
    assert client.predictions.wait(ABORTED).status == "canceled"


@check("predictions.get")
def get_of_a_training():
    """A training answers below /predictions too."""
    assert client.predictions.get(prediction_id=TRAINING).id == TRAINING


@check("predictions.cancel")
def cancel():
    """Cancel answers the object at once, canceled."""
    prediction = client.predictions.create(version=VERSION, input=LONG)
    assert client.predictions.cancel(prediction_id=prediction.id).status == "canceled"
    assert client.predictions.get(prediction_id=prediction.id).status == "canceled"


@check("predictions.list")
def list_predictions():
    """The list leads over pages by absolute cursors, and no prediction comes twice."""
    ids = [prediction.id for prediction in client.predictions.list()]
    assert len(ids) > 100
    assert len(set(ids)) == len(ids)


@check("predictions.list")
def list_since():
    """created_after leaves out what is older."""
    prediction = client.predictions.create(version=VERSION, input=say(WORDS))
    found = list(client.predictions.list(created_after=prediction.created_at))
    assert len(found) < 100
    assert all(listed.created_at >= prediction.created_at for listed in found)


@check("predictions.create")
def errors():
    """Each kind of refusal raises its own class, with the reason in its text."""
    create = client.predictions.create
    error = raised(
        replicate.UnprocessableEntityError, create, version=VERSION, input={"top_k": "x"}
    )
    assert "top_k" in str(error)
    assert {field["field"] for field in error.body["invalid_fields"]} >= {"input.top_k"}
    raised(replicate.NotFoundError, client.predictions.get, prediction_id="a" * 26)
    nobody = replicate.Replicate(bearer_token="r8_wrong")
    raised(replicate.AuthenticationError, nobody.predictions.list)


@check("predictions.get")
def get_of_another():
    """The prediction of another owner is NotFoundError."""
    prediction = client.predictions.create(version=VERSION, input=say(WORDS))
    stranger = replicate.Replicate(bearer_token=STRANGER)
    raised(replicate.NotFoundError, stranger.predictions.get, prediction_id=prediction.id)


@check("models.predictions.create")
def create_by_model():
    """A prediction by name."""
    prediction = client.models.predictions.create(**OF_CHAT, input=say(WORDS), prefer="wait")
    assert "".join(prediction.output) == spoken(WORDS)


@check("deployments.predictions.create")
def create_by_deployment():
    """A prediction by a deployment's name."""
    prediction = client.deployments.predictions.create(
        deployment_owner=OWNER, deployment_name="deployed", input=say(WORDS), prefer="wait"
    )
    assert "".join(prediction.output) == spoken(WORDS)


main()
