"""Which version a request means: a bare id, owner/name:id, owner/name, or an id of an old guide."""

import re
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from src.service.http.problem import Problem
from src.service.replicate.checks.old_versions import OLD_VERSIONS
from src.service.store.models import (
    Model,
    Version,
    base_model_name,
    latest_version,
    visible_model,
    visible_version,
)

_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Found:
    """A version, and what the run's log says of how it was found."""

    version: Version
    log: str = ""

    @property
    def model(self) -> str:
        """Return its owner/name."""
        return f"{self.version.model_owner}/{self.version.model_name}"


def find_version(connection: Connection, asked: str, asker: str) -> Found:
    """Return the version that a text names; raises Problem where the asker sees none."""
    model, _, version_id = asked.rpartition(":") if ":" in asked else ("", "", asked)
    if not model and "/" in asked:
        model, version_id = asked, ""
    if version_id:
        version = visible_version(connection, version_id, asker)
        if version is not None and model in ("", f"{version.model_owner}/{version.model_name}"):
            return Found(version)
        if not model and version_id in OLD_VERSIONS:
            model = base_model_name(OLD_VERSIONS[version_id])
    owner, _, name = model.lower().partition("/")
    found = visible_model(connection, owner, name, asker)
    if found is None or (version_id and not (found.is_base and _ID.fullmatch(version_id))):
        raise _unknown(asked)
    log = f"version {version_id} of {model} is taken as the current one\n" if version_id else ""
    return replace(find_current(connection, found), log=log)


def find_current(connection: Connection, model: Model) -> Found:
    """Return a model's newest version; raises Problem where it has none."""
    version = latest_version(connection, model.owner, model.name)
    if version is None:
        raise _unknown(f"{model.owner}/{model.name}")
    return Found(version)


def _unknown(asked: str) -> Problem:
    return Problem(
        422,
        f"The specified version does not exist (or perhaps you don't have permission to use it?): "
        f"{asked[:200]}",
        title="Invalid version or not permitted",
    )
