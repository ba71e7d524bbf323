"""Which version a model's name means: ft:..., a base model, owner/name, or owner/name:version."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from src.base_models import KNOWN_MODELS
from src.service.openai.errors import no_such_model
from src.service.service import Service
from src.service.store.models import (
    Version,
    base_model_name,
    latest_version,
    visible_model,
    visible_version,
)
from src.service.store.runs import find_run


def find_model_version(
    connection: Connection, name: str, asker: str, base_model: str
) -> Version | None:
    """Return the version that a name means, if the asker sees it."""
    if name in KNOWN_MODELS or name == short_name(base_model):
        name = base_model_name(name if name in KNOWN_MODELS else base_model)
    elif name.startswith("ft:"):
        return visible_version(connection, name, asker)
    model, _, version_id = name.partition(":")
    owner, _, short = model.lower().partition("/")
    if version_id:
        version = visible_version(connection, version_id, asker)
        is_of_model = version and (version.model_owner, version.model_name) == (owner, short)
        return version if is_of_model else None
    if not short:
        return visible_version(connection, owner, asker)
    if visible_model(connection, owner, short, asker) is None:
        return None
    return latest_version(connection, owner, short)


def short_name(base_model: str) -> str:
    """Return what a base model is called in this API."""
    return base_model if base_model in KNOWN_MODELS else os.path.basename(base_model.rstrip("/"))


@dataclass(frozen=True)
class AnsweringModel:
    """A model that answers."""

    name: str
    """Who really answers: names of hosted base models stand for the one of this service."""
    inputs: dict[str, Any]
    """The inputs of `predict` that name its weights."""
    has_own_format: bool
    """Whether its weights bring a prompt template in place of the base model's format."""


@asynccontextmanager
async def answering_model(service: Service, name: str, asker: str) -> AsyncIterator[AnsweringModel]:
    """Context in which the weights of a model lie ready; raises ApiError for no such model."""
    base = service.settings.base_model
    version = await service.database.read(find_model_version, name, asker, base)
    if version is None:
        raise no_such_model(name)
    if version.weights is None:
        yield AnsweringModel(short_name(base), {}, False)
        return
    run = version.training and await service.database.read(find_run, version.training)
    has_own_format = bool(run and (run.input or {}).get("prompt_template"))
    async with AsyncExitStack() as stack:
        path = await stack.enter_async_context(service.blobs.local_path(version.weights))
        yield AnsweringModel(name, {"replicate_weights": str(path)}, has_own_format)
