"""The objects of Replicate's API, with every field that one of its clients needs."""

from typing import Any

from src.service.store.deployments import Deployment
from src.service.store.file_rows import File
from src.service.store.models import Model, Version
from src.service.store.runs import Run
from src.service.store.schema import UNFINISHED

COG_VERSION = "0.23.1"


def render_run(run: Run, base_url: str | None = None, **shown: Any) -> dict[str, Any]:
    """Return a prediction or a training; `shown` is what runs now and its row lacks."""
    base = base_url or run.base_url
    url = f"{base}/v1/{run.kind}s/{run.id}"
    urls = {"get": url, "cancel": f"{url}/cancel", "web": f"{base}/runs/{run.id}"}
    rendered = {
        "id": run.id,
        "model": run.model,
        "version": run.version,
        "status": run.status,
        "input": run.input,
        "output": run.output,
        "logs": run.logs,
        "error": run.error,
        "metrics": run.metrics if run.status not in UNFINISHED else {},
        "created_at": run.created_at,
        "started_at": run.started_at,
        "completed_at": run.completed_at,
        "source": run.source,
        "data_removed": run.data_removed,
        "urls": urls,
    }
    optional = {
        "deadline": run.deadline,
        "deployment": run.deployment,
        "webhook": run.webhook,
        "webhook_events_filter": run.webhook_events,
    }
    rendered |= {name: value for name, value in optional.items() if value is not None}
    if run.kind == "prediction":
        urls["stream"] = f"{base}/v1/streams/{run.id}/{run.capability}"
    else:
        rendered["destination"] = run.destination
    return {**rendered, **shown}


def render_version(version: Version, schema: dict[str, Any]) -> dict[str, Any]:
    """Return a version; all have one schema, since one base model answers them."""
    return {
        "id": version.id,
        "created_at": version.created_at,
        "cog_version": COG_VERSION,
        "openapi_schema": schema,
    }


def render_model(
    model: Model, latest: Version | None, base_url: str, schema: dict[str, Any]
) -> dict[str, Any]:
    """Return a model with its latest version."""
    return {
        "url": f"{base_url}/{model.owner}/{model.name}",
        "owner": model.owner,
        "name": model.name,
        "description": model.description,
        "visibility": model.visibility,
        "github_url": model.github_url,
        "paper_url": model.paper_url,
        "license_url": model.license_url,
        "cover_image_url": model.cover_image_url,
        "run_count": model.run_count,
        "default_example": None,
        "is_official": False,
        "created_at": model.created_at,
        "latest_version": None if latest is None else render_version(latest, schema),
    }


def render_file(file: File, base_url: str) -> dict[str, Any]:
    """Return a file."""
    rendered = {
        "id": file.id,
        "name": file.name,
        "content_type": file.content_type,
        "size": file.size,
        "etag": file.md5,
        "checksums": {"sha256": file.sha256, "md5": file.md5},
        "metadata": file.metadata,
        "created_at": file.created_at,
        "urls": {"get": f"{base_url}/v1/files/{file.id}"},
    }
    return rendered if file.expires_at is None else {**rendered, "expires_at": file.expires_at}


def render_account(owner: str) -> dict[str, Any]:
    """Return the account of a token's owner."""
    return {"type": "user", "username": owner, "name": owner, "github_url": None}


def render_deployment(deployment: Deployment) -> dict[str, Any]:
    """Return a deployment with its current release."""
    return {
        "owner": deployment.owner,
        "name": deployment.name,
        "current_release": {
            "number": deployment.number,
            "model": deployment.model,
            "version": deployment.version,
            "created_at": deployment.created_at,
            "created_by": render_account(deployment.owner),
            "configuration": {
                "hardware": deployment.hardware,
                "min_instances": deployment.min_instances,
                "max_instances": deployment.max_instances,
            },
        },
    }


def weights_url(version_id: str, capability: str, base_url: str) -> str:
    """Return where a version's weights are, for anybody who was told."""
    return f"{base_url}/v1/weights/{version_id}/{capability}/weights.tar"
