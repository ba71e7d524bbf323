"""Python `replicate` 2.0 beta: trainings, models, files, deployments and account."""

import base64
import hmac
import io
import time

import replicate
from check import (
    API,
    CHAT,
    CLIENT,
    DATA,
    DESTINATION,
    GUIDE_VERSION,
    OWNER,
    TRAINING,
    WORDS,
    ask,
    check,
    main,
    raised,
    say,
    spoken,
    until,
)

client = replicate.Replicate()
OWN_MODEL = {"model_owner": OWNER, "model_name": f"{CLIENT}-model"}
OF_CHAT = {"model_owner": "meta", "model_name": "llama-2-7b-chat"}
OF_BASE = {"model_owner": "meta", "model_name": "llama-2-7b"}
VERSION = client.models.get(**OF_CHAT).latest_version.id


@check("trainings.create")
def train():
    """A training on an uploaded file, which this client does not encode itself, and its cancel."""
    with open(DATA, "rb") as data:
        file = client.files.create(content=data)
    training = client.trainings.create(
        **OF_BASE,
        version_id=GUIDE_VERSION,
        destination=DESTINATION,
        input={"train_data": file.urls.get},
    )
    assert training.status == "starting"
    assert client.trainings.cancel(training_id=training.id).status == "canceled"


@check("trainings.get")
def train_to_the_end():
    """A training is polled to its end, with metrics, and its version answers."""
    training = until(
        lambda: (
            (found := client.trainings.get(training_id=TRAINING)).status == "succeeded" and found
        ),
        seconds=120,
    )
    assert training.metrics.predict_time > 0
    assert "".join(client.run(training.output.version, input=say(WORDS))) == spoken(WORDS)


@check("trainings.list")
def list_trainings():
    """Trainings are listed."""
    assert TRAINING in [training.id for training in client.trainings.list()]


@check("models.create")
def models():
    """A model is created, changed, found and deleted."""
    made = client.models.create(
        owner=OWNER, name=f"{CLIENT}-model", visibility="private", hardware="cpu"
    )
    assert made.visibility == "private"
    changed = client.models.update(**OWN_MODEL, description="Mine.", readme="# Mine")
    assert changed.description == "Mine."
    assert client.models.readme.get(**OWN_MODEL) == "# Mine"
    assert list(client.models.examples.list(**OWN_MODEL)) == []
    client.models.delete(**OWN_MODEL)
    raised(replicate.NotFoundError, client.models.get, **OWN_MODEL)


@check("models.list")
def list_models():
    """Models are listed, sorted as asked for."""
    models = list(client.models.list(sort_by="model_created_at", sort_direction="asc"))
    assert CHAT in [f"{model.owner}/{model.name}" for model in models]


@check("models.search")
def search_models():
    """The quoted text of a QUERY finds models."""
    names = [
        f"{found['owner']}/{found['name']}"
        if isinstance(found, dict)
        else f"{found.owner}/{found.name}"
        for found in client.models.search(body="7b-chat")
    ]
    assert CHAT in names


@check("search")
def search():
    """The search of everything finds models."""
    assert "llama-2-7b-chat" in [found.model.name for found in client.search(query="7b").models]


@check("models.versions.list")
def versions():
    """Versions lead over pages, and each is found by its id."""
    ids = [version.id for version in client.models.versions.list(**OF_CHAT)]
    assert VERSION in ids
    version = client.models.versions.get(**OF_CHAT, version_id=VERSION)
    assert version.openapi_schema["components"]["schemas"]["Output"]["type"] == "array"


@check("files.create")
def files():
    """metadata[key], name and type as parts of their own; list, get and delete."""
    file = client.files.create(
        content=b"hello", filename="a.txt", type="text/plain", metadata={"of": CLIENT}
    )
    assert file.metadata == {"of": CLIENT}
    assert (file.size, file.content_type) == (5, "text/plain")
    assert file.name == "a.txt"
    assert client.files.get(file_id=file.id).checksums.sha256
    assert file.id in [listed.id for listed in client.files.list()]
    client.files.delete(file_id=file.id)
    raised(replicate.NotFoundError, client.files.get, file_id=file.id)


@check("files.download")
def download():
    """A download that is signed with the owner's secret gives the bytes, another one is refused."""
    file = client.files.create(content=b"hello")
    expiry = int(time.time()) + 60
    secret = client.webhooks.default.secret.get().key.removeprefix("whsec_")
    text = f"{OWNER} {file.id} {expiry}".encode()
    digest = hmac.digest(base64.b64decode(secret), text, "sha256")
    values = {"file_id": file.id, "owner": OWNER, "expiry": expiry}
    signature = base64.b64encode(digest).decode()
    assert client.files.download(**values, signature=signature).read() == b"hello"
    raised(replicate.PermissionDeniedError, client.files.download, **values, signature="AAAA")


@check("predictions.create")
def input_of_a_file():
    """A file in the input is uploaded, and its address arrives as text."""
    prediction = client.predictions.create(
        version=VERSION, input={"prompt": io.BytesIO(b"hello"), "max_new_tokens": 2}
    )
    assert prediction.input["prompt"].startswith(f"{API}/v1/files/")


@check("deployments.create")
def deployments():
    """A deployment is created, changed, listed and deleted."""
    name = f"{CLIENT}-deployment"
    of = {"deployment_owner": OWNER, "deployment_name": name}
    sizes = {"hardware": "cpu", "min_instances": 0, "max_instances": 1}
    client.deployments.create(name=name, model=CHAT, version=VERSION, **sizes)
    assert client.deployments.update(**of, max_instances=2).current_release.number == 2
    assert client.deployments.get(**of).current_release.configuration.max_instances == 2
    assert name in [deployment.name for deployment in client.deployments.list()]
    client.deployments.delete(**of)
    raised(replicate.NotFoundError, client.deployments.get, **of)


@check("hardware.list")
def hardware():
    """Hardware is a bare list."""
    assert all(found.sku for found in client.hardware.list())


@check("collections.list")
def collections():
    """Collections are an empty page."""
    assert list(client.collections.list()) == []
    raised(replicate.NotFoundError, client.collections.get, collection_slug="none")


@check("account.get")
def account():
    """The account is the token's owner."""
    assert client.account.get().username == OWNER


@check("webhooks.default.secret.get")
def secret():
    """There is a secret to check webhooks by."""
    assert client.webhooks.default.secret.get().key.startswith("whsec_")


@check("Replicate(base_url)")
def base_url_without_v1():
    """An address without /v1, as older clients take it, works as well."""
    other = replicate.Replicate(base_url=API)
    assert "".join(other.run(CHAT, input=say(WORDS))) == spoken(WORDS)
    assert len([prediction.id for prediction in other.predictions.list()]) > 100


@check("predictions.get")
def streams_are_there():
    """urls.stream is there for whoever opens it, without a token."""
    prediction = client.predictions.create(version=VERSION, input=say(WORDS), prefer="wait")
    assert b"event: done" in ask(prediction.urls.stream)[2]


main()
