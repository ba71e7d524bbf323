"""The service's own files, as URLs in a run's inputs name them."""

from dataclasses import dataclass

from sqlalchemy import Connection

from src.service.http.addresses import OwnAddress
from src.service.store.file_rows import find_file
from src.service.store.models import find_version


@dataclass(frozen=True)
class OwnFile:
    """Where its bytes lie, and what its owner calls it."""

    key: str
    name: str


def find_own_file(connection: Connection, address: OwnAddress, owner: str) -> OwnFile | None:
    """Return a file that the owner may read: their own, or one whose secret URL they were told."""
    if address.kind == "weights":
        version = find_version(connection, address.id)
        if version is None or version.weights is None or version.capability != address.capability:
            return None
        return OwnFile(version.weights, "weights.tar")
    file = find_file(connection, address.id)
    if file is None or file.size is None:
        return None
    if file.owner != owner and file.capability != address.capability:
        return None
    return OwnFile(file.id, file.name)
