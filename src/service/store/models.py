"""Models and their versions: the base models of the table, and what trainings made."""

import hashlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, or_, select, update

from src.base_models import KNOWN_MODELS
from src.service.store.database import Place, select_page
from src.service.store.ids import new_capability
from src.service.store.schema import models, runs, versions
from src.service.store.usage import change_usage
from src.service.times import now_text

Model = Row[Any]
Version = Row[Any]
OWNERS = {"llama": "meta", "mistral": "mistralai", "smollm2": "huggingfacetb"}
"""The owner of a known base model, by how its name begins."""
_FIND_MODEL = select(models).where(
    models.c.owner == bindparam("of"), models.c.name == bindparam("named")
)
_FIND_VERSION = select(versions).where(versions.c.id == bindparam("version"))
_VERSIONS = (
    select(versions)
    .where(versions.c.model_owner == bindparam("of"), versions.c.model_name == bindparam("named"))
    .order_by(versions.c.created_at.desc())
)
_LATEST_VERSION = _VERSIONS.limit(1)


def base_model_name(base_model: str) -> str:
    """Return owner/name of a base model: known ones as the hosted service called them."""
    if base_model in KNOWN_MODELS:
        return f"{OWNERS[base_model.partition('-')[0]]}/{base_model}"
    *_, owner, name = ["local", *base_model.rstrip("/").lower().split("/")]
    return f"{owner or 'local'}/{name}"


def base_version_id(full_name: str) -> str:
    """Return the one version of a base model."""
    return hashlib.sha256(f"base model {full_name}".encode()).hexdigest()


def add_base_models(connection: Connection, base_model: str) -> None:
    """Make sure that the known base models, and the one that is served, are in the tables."""
    for name in {*KNOWN_MODELS, base_model}:
        full_name = base_model_name(name)
        owner, _, short = full_name.partition("/")
        if find_model(connection, owner, short) is not None:
            continue
        create_model(
            connection,
            {
                "owner": owner,
                "name": short,
                "visibility": "public",
                "is_base": True,
                "description": f"The base model {name}",
            },
        )
        add_version(connection, owner, short, base_version_id(full_name))


def create_model(connection: Connection, values: dict[str, Any]) -> Model:
    """Insert a model; return its row."""
    row = {"created_at": now_text(), **values}
    return connection.execute(insert(models).values(row).returning(models)).one()


def find_model(connection: Connection, owner: str, name: str) -> Model | None:
    """Return a model, whoever asks."""
    return connection.execute(_FIND_MODEL, {"of": owner, "named": name}).one_or_none()


def visible_model(connection: Connection, owner: str, name: str, asker: str) -> Model | None:
    """Return a model that is public or the asker's own."""
    model = find_model(connection, owner, name)
    return model if model is not None and _is_visible(model, asker) else None


def list_models(
    connection: Connection,
    asker: str,
    *,
    limit: int,
    place: Place | None = None,
    search: str | None = None,
    by_version: bool = False,
    oldest_first: bool = False,
) -> Sequence[Model]:
    """Return the models that the asker sees, the newest first; `search` is words they hold.

    `listed_at` of a row is the time by which it is listed: its own, or that of its latest version.
    """
    time: Any = models.c.created_at
    if by_version:
        of_model = versions.c.model_owner == models.c.owner, versions.c.model_name == models.c.name
        newest = select(func.max(versions.c.created_at)).where(*of_model).scalar_subquery()
        time = func.coalesce(newest, time)
    query = select(models, time.label("listed_at"))
    query = query.where(or_(models.c.visibility == "public", models.c.owner == asker))
    full_name = models.c.owner + "/" + models.c.name
    for word in (search or "").lower().split():
        held = [full_name, models.c.description]
        query = query.where(or_(*(column.icontains(word, autoescape=True) for column in held)))
    if not oldest_first:
        return select_page(connection, query, time, full_name, limit=limit, place=place)
    # Such a page is one that is read back from its end.
    place = place._replace(is_before=not place.is_before) if place else Place("", "", True)
    return select_page(connection, query, time, full_name, limit=limit, place=place)[::-1]


def change_model(connection: Connection, owner: str, name: str, values: dict[str, Any]) -> Model:
    """Change what a model says of itself; return its row."""
    query = update(models).where(models.c.owner == owner, models.c.name == name)
    return connection.execute(query.values(values).returning(models)).one()


def delete_model(connection: Connection, owner: str, name: str) -> None:
    """Delete a model without versions."""
    connection.execute(delete(models).where(models.c.owner == owner, models.c.name == name))


def add_version(
    connection: Connection, owner: str, name: str, version_id: str, **values: Any
) -> Version:
    """Insert a version of a model; return its row."""
    row = {
        "id": version_id, "model_owner": owner, "model_name": name, "created_at": now_text(),
        "capability": new_capability(),
    }  # fmt: skip
    change_usage(connection, owner, stored=values.get("size", 0))
    return connection.execute(insert(versions).values({**row, **values}).returning(versions)).one()


def list_versions(connection: Connection, owner: str, name: str) -> Sequence[Version]:
    """Return a model's versions, the newest first."""
    return connection.execute(_VERSIONS, {"of": owner, "named": name}).all()


def latest_version(connection: Connection, owner: str, name: str) -> Version | None:
    """Return a model's newest version."""
    return connection.execute(_LATEST_VERSION, {"of": owner, "named": name}).one_or_none()


def find_version(connection: Connection, version_id: str) -> Version | None:
    """Return a version, whoever asks."""
    return connection.execute(_FIND_VERSION, {"version": version_id}).one_or_none()


def visible_version(connection: Connection, version_id: str, asker: str) -> Version | None:
    """Return a version whose model is public or the asker's own."""
    query = select(versions).where(or_(versions.c.id == version_id, versions.c.alias == version_id))
    version = connection.execute(query).one_or_none()
    if version is None:
        return None
    model = visible_model(connection, version.model_owner, version.model_name, asker)
    return None if model is None else version


def own_versions(connection: Connection, owner: str) -> Sequence[Version]:
    """Return all fine-tuned versions of an owner's models, the newest first."""
    query = select(versions).where(versions.c.model_owner == owner, versions.c.weights.is_not(None))
    return connection.execute(query.order_by(versions.c.created_at.desc())).all()


def is_used(connection: Connection, version_id: str) -> bool:
    """Whether a version answers predictions that have not ended."""
    query = select(runs.c.id).where(
        runs.c.version == version_id, runs.c.status.in_(("starting", "processing"))
    )
    return connection.execute(query.limit(1)).first() is not None


def is_destination(connection: Connection, full_name: str) -> bool:
    """Whether a training that has not ended makes a version of a model."""
    query = select(runs.c.id).where(
        runs.c.destination == full_name, runs.c.status.in_(("starting", "processing"))
    )
    return connection.execute(query.limit(1)).first() is not None


def delete_version(connection: Connection, version_id: str) -> None:
    """Delete a version; its bytes are the caller's to delete."""
    deleted = delete(versions).where(versions.c.id == version_id).returning(versions)
    version = connection.execute(deleted).one_or_none()
    if version is not None:
        change_usage(connection, version.model_owner, stored=-version.size)


def _is_visible(model: Model, asker: str) -> bool:
    return model.visibility == "public" or model.owner == asker
