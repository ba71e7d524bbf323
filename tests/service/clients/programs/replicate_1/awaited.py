"""Python `replicate` 1.0: the calls that are awaited."""

import asyncio
import io

import replicate
from check import (
    CHAT,
    DESTINATION,
    FAILS,
    GUIDE_VERSION,
    LONG,
    OWNER,
    WORDS,
    check,
    main,
    raised_async,
    say,
    spoken,
)
from replicate.exceptions import ModelError, ReplicateError

VERSION = replicate.models.get(CHAT).latest_version.id


def client():
    """Return a client for one event loop."""
    return replicate.Client()


@check("async_run")
async def run():
    """`async_run` of a name answers with all chunks."""
    assert "".join(await client().async_run(CHAT, input=say(WORDS))) == spoken(WORDS)


@check("async_run")
async def run_by_version():
    """`async_run` of a version answers with an async iterator."""
    output = await client().async_run(f"{CHAT}:{VERSION}", input=say(WORDS))
    assert "".join([chunk async for chunk in output]) == spoken(WORDS)


@check("async_run")
async def run_many():
    """Many at once each get their own answer."""
    texts = [f"It is {number}." for number in range(12)]
    runs = client()
    outputs = await asyncio.gather(*(runs.async_run(CHAT, input=say(text)) for text in texts))
    assert ["".join(output) for output in outputs] == [spoken(text) for text in texts]


@check("async_run")
async def run_fails():
    """A prediction that fails raises ModelError."""
    error = await raised_async(ModelError, client().async_run(CHAT, input=FAILS))
    assert "no-such-weights.tar" in str(error)


@check("async_stream")
async def stream():
    """Streamed events make up the answer."""
    events = [event async for event in await client().async_stream(CHAT, input=say(WORDS))]
    assert "".join(str(event) for event in events) == spoken(WORDS)


@check("predictions.async_create")
async def create():
    """A prediction is created, waited for and found again."""
    predictions = client().predictions
    prediction = await predictions.async_create(version=VERSION, input=say(WORDS))
    await prediction.async_wait()
    assert "".join(prediction.output) == spoken(WORDS)
    assert (await predictions.async_get(prediction.id)).output == prediction.output


@check("prediction.async_cancel")
async def cancel():
    """A running prediction is canceled."""
    prediction = await client().predictions.async_create(version=VERSION, input=LONG)
    await prediction.async_cancel()
    await prediction.async_wait()
    assert prediction.status == "canceled"


@check("predictions.async_list")
async def paginate():
    """Pages lead on by cursors."""
    pages = [page async for page in replicate.async_paginate(client().predictions.async_list)]
    assert len(pages) > 1


@check("models.async_get")
async def model():
    """A model is found, and one that is not there is 404."""
    models = client().models
    assert (await models.async_get(CHAT)).owner == "meta"
    assert (await raised_async(ReplicateError, models.async_get("meta/nothing"))).status == 404


@check("models.async_search")
async def search():
    """A model is found by a part of its name."""
    assert CHAT in [model.id for model in await client().models.async_search("7b-chat")]


@check("files.async_create")
async def files():
    """A file is created, found, listed and deleted."""
    found = client().files
    file = await found.async_create(io.BytesIO(b"hello"), filename="a.txt")
    assert (await found.async_get(file.id)).size == 5
    assert file.id in [listed.id for listed in await found.async_list()]
    assert await found.async_delete(file.id) is True


@check("trainings.async_create")
async def training():
    """A training is created on a handle, canceled and listed."""
    trainings = client().trainings
    training = await trainings.async_create(
        model="meta/llama-2-7b",
        version=GUIDE_VERSION,
        input={"train_data": io.BytesIO(b'{"text": "It is red."}\n' * 8)},
        destination=DESTINATION,
    )
    await training.async_cancel()
    assert training.status == "canceled"
    await training.async_reload()
    assert training.status == "canceled"
    assert training.id in [listed.id for listed in await trainings.async_list()]


@check("deployments.async_get")
async def deployment():
    """A deployment is found, and predicts."""
    deployment = await client().deployments.async_get(f"{OWNER}/deployed")
    prediction = await deployment.predictions.async_create(say(WORDS))
    await prediction.async_wait()
    assert "".join(prediction.output) == spoken(WORDS)


@check("accounts.async_current")
async def account():
    """The account is the token's owner."""
    assert (await client().accounts.async_current()).username == OWNER


@check("webhooks.default.async_secret")
async def secret():
    """There is a secret to check webhooks by."""
    assert (await client().webhooks.default.async_secret()).key.startswith("whsec_")


main()
