"""Python `replicate` 1.0: models, files, deployments, webhooks and account."""

import hashlib
import io
from pathlib import Path

import replicate
from check import (
    CHAT,
    CLIENT,
    DATA,
    OWNER,
    RECEIVER,
    STRANGER,
    TOO_LARGE,
    WORDS,
    check,
    hooks,
    is_completed,
    main,
    raised,
    say,
)
from replicate.exceptions import ReplicateError
from replicate.webhook import InvalidSignatureError

ROWS = b'{"prompt": "What?", "completion": "It is red."}\n' * 8
NAME = f"{CLIENT}-model"


@check("models.get")
def models():
    """The names of the table exist, with version and schema."""
    for name in ("llama-2-7b", "llama-2-13b-chat", "llama-2-70b"):
        model = replicate.models.get(f"meta/{name}")
        assert model.visibility == "public"
        schemas = model.latest_version.openapi_schema["components"]["schemas"]
        assert {"Input", "Output", "TrainingInput", "TrainingOutput"} <= set(schemas)


@check("models.list")
def list_models():
    """Models come in pages."""
    found = [model.id for page in replicate.paginate(replicate.models.list) for model in page]
    assert CHAT in found


@check("models.search")
def search():
    """The bare text of a QUERY finds models, and nothing is an empty page."""
    assert CHAT in [model.id for model in replicate.models.search("llama-2-7b")]
    assert replicate.models.search("no such model at all").results == []


@check("models.create")
def create_and_delete_a_model():
    """A model is created, seen by its owner alone, and deleted."""
    values = {"visibility": "private", "hardware": "cpu", "description": "Mine."}
    model = replicate.models.create(owner=OWNER, name=NAME, **values)
    assert (model.owner, model.name, model.description) == (OWNER, NAME, "Mine.")
    assert model.latest_version is None
    stranger = replicate.Client(api_token=STRANGER)
    assert raised(ReplicateError, stranger.models.get, model.id).status == 404
    assert replicate.models.delete(OWNER, NAME) is True
    assert raised(ReplicateError, replicate.models.get, model.id).status == 404


@check("models.create")
def create_a_model_of_another():
    """A model of another owner is refused."""
    values = {"visibility": "private", "hardware": "cpu"}
    error = raised(ReplicateError, replicate.models.create, owner="meta", name=NAME, **values)
    assert error.status in (403, 404, 422)


@check("models.versions.list")
def versions():
    """Versions are a page, the latest first."""
    model = replicate.models.get(CHAT)
    assert model.versions.list()[0].id == model.latest_version.id
    assert isinstance(model.latest_version.cog_version, str)


@check("files.create")
def files():
    """A file has name, size, checksums, etag and metadata, and is deleted with 204."""
    file = replicate.files.create(DATA, metadata={"of": CLIENT})
    content = Path(DATA).read_bytes()
    assert file.name == Path(DATA).name
    assert file.size == len(content)
    assert file.checksums["sha256"] == hashlib.sha256(content).hexdigest()
    assert file.etag
    assert file.metadata == {"of": CLIENT}
    assert replicate.files.get(file.id).id == file.id
    assert file.id in [listed.id for listed in replicate.files.list()]
    assert replicate.files.delete(file.id) is True
    assert raised(ReplicateError, replicate.files.get, file.id).status == 404


@check("files.create")
def a_handle():
    """A handle without a name is taken, with a type of its own."""
    file = replicate.files.create(io.BytesIO(b"{}"), content_type="application/json")
    assert (file.content_type, file.metadata) == ("application/json", {})


@check("files.create")
def a_file_that_is_too_large():
    """A file that is too large is 413, with a sentence that says how large it may be."""
    error = raised(ReplicateError, replicate.files.create, io.BytesIO(TOO_LARGE))
    assert error.status == 413
    assert "MB" in error.detail or "bytes" in error.detail, error.detail


@check("models.versions.delete")
def delete_a_version_of_all():
    """The version of a base model is nobody's to delete."""
    model = replicate.models.get(CHAT)
    error = raised(ReplicateError, model.versions.delete, model.latest_version.id)
    assert error.status in (403, 404)


@check("files.get")
def file_of_another():
    """The file of another owner is 404, also to delete and to train on."""
    file = replicate.files.create(io.BytesIO(ROWS))
    stranger = replicate.Client(api_token=STRANGER)
    assert raised(ReplicateError, stranger.files.get, file.id).status == 404
    assert raised(ReplicateError, stranger.files.delete, file.id).status == 404
    assert file.id not in [listed.id for listed in stranger.files.list()]


@check("deployments.create")
def deployments():
    """A deployment is created, raised by one release with each change, and deleted."""
    version = replicate.models.get(CHAT).latest_version.id
    sizes = {"hardware": "cpu", "min_instances": 0, "max_instances": 1}
    name = f"{CLIENT}-deployment"
    made = replicate.deployments.create(
        name=f"{OWNER}/{name}", model=CHAT, version=version, **sizes
    )
    assert made.current_release.model == CHAT
    assert made.current_release.created_by.name
    changed = replicate.deployments.update(OWNER, name, max_instances=2)
    assert changed.current_release.number == made.current_release.number + 1
    assert changed.current_release.configuration.max_instances == 2
    assert name in [deployment.name for deployment in replicate.deployments.list()]
    assert replicate.deployments.get(f"{OWNER}/{name}").id == f"{OWNER}/{name}"
    assert replicate.deployments.delete(OWNER, name) is True


@check("hardware.list")
def hardware():
    """Hardware is a bare list of names and SKUs."""
    assert all(found.sku and found.name for found in replicate.hardware.list())


@check("collections.list")
def collections():
    """Collections are an empty page, and one that is not there is 404."""
    assert replicate.collections.list().results == []
    assert raised(ReplicateError, replicate.collections.get, "none").status == 404


@check("accounts.current")
def account():
    """The account has type, username and a name."""
    account = replicate.Client().accounts.current()
    assert account.type in ("user", "organization")
    assert account.username == OWNER
    assert account.name


@check("webhooks.validate")
def validate_a_webhook():
    """The client's own check takes the signature, and refuses it for another body."""
    key = f"{CLIENT}-signed"
    secret = replicate.webhooks.default.secret()
    replicate.models.predictions.create(
        model=CHAT, input=say("größer\u2028"), webhook=f"{RECEIVER}/hook/{key}"
    )
    for hook in hooks(key, until=is_completed):
        values = {"headers": hook["headers"], "secret": secret, "tolerance": 300}
        replicate.webhooks.validate(body=hook["body"], **values)
        raised(InvalidSignatureError, replicate.webhooks.validate, body="{}", **values)


@check("webhooks.validate")
def a_webhook_comes_again():
    """A webhook of the end that was not taken comes again with the same id."""
    key = f"{CLIENT}-again"
    replicate.models.predictions.create(
        model=CHAT,
        input=say(WORDS),
        webhook=f"{RECEIVER}/hook/{key}?fail=1",
        webhook_events_filter=["completed"],
    )
    first, second = hooks(key, until=lambda came: len(came) == 2)
    assert first["headers"]["webhook-id"] == second["headers"]["webhook-id"]
    assert first["body"] == second["body"]
    replicate.webhooks.validate(
        headers=second["headers"], body=second["body"], secret=replicate.webhooks.default.secret()
    )


main()
