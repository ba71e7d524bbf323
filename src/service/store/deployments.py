"""Deployments: other names for a version."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from src.service.store.schema import deployments
from src.service.times import now_text

Deployment = Row[Any]


def create_deployment(connection: Connection, values: dict[str, Any]) -> Deployment:
    """Insert a deployment with its first release; return its row."""
    row = {"number": 1, "created_at": now_text(), **values}
    return connection.execute(insert(deployments).values(row).returning(deployments)).one()


def find_deployment(connection: Connection, owner: str, name: str) -> Deployment | None:
    """Return a deployment."""
    query = select(deployments).where(deployments.c.owner == owner, deployments.c.name == name)
    return connection.execute(query).one_or_none()


def list_deployments(connection: Connection, owner: str) -> Sequence[Deployment]:
    """Return an owner's deployments, the newest first."""
    query = select(deployments).where(deployments.c.owner == owner)
    return connection.execute(query.order_by(deployments.c.created_at.desc())).all()


def release_deployment(
    connection: Connection, owner: str, name: str, values: dict[str, Any]
) -> Deployment:
    """Change a deployment, which is a new release; return its row."""
    query = update(deployments).where(deployments.c.owner == owner, deployments.c.name == name)
    values = {**values, "number": deployments.c.number + 1}
    return connection.execute(query.values(values).returning(deployments)).one()


def delete_deployment(connection: Connection, owner: str, name: str) -> bool:
    """Delete a deployment; return whether there was one."""
    query = delete(deployments).where(deployments.c.owner == owner, deployments.c.name == name)
    return connection.execute(query).rowcount > 0
