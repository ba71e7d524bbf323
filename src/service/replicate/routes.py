"""Replicate's API: which handler answers which path."""

from collections.abc import Iterator

from starlette.routing import Route

from src.service.http.auth import Handler, Rate, authorized
from src.service.replicate import (
    account,
    deployments,
    files,
    model_lists,
    models,
    predictions,
    trainings,
)

PREFIXES = ("/v1", "", "/v1/v1")
"""Clients disagree whether the base URL that a variable gives them ends in /v1."""
_MODEL = "/models/{owner}/{name}"
_DEPLOYMENT = "/deployments/{owner}/{name}"
_ROUTES: list[tuple[str, str, Handler, Rate]] = [
    ("GET", "/account", account.get_account, "other"),
    ("GET", "/hardware", account.list_hardware, "other"),
    ("GET", "/collections", account.list_collections, "other"),
    ("GET", "/collections/{slug}", account.get_collection, "other"),
    ("GET", "/webhooks/default/secret", account.get_webhook_secret, "other"),
    ("GET", "/search", model_lists.find, "other"),
    ("POST", "/predictions", predictions.create, "create"),
    ("GET", "/predictions", predictions.list_predictions, "other"),
    ("GET", "/predictions/{id}", predictions.get, "other"),
    ("POST", "/predictions/{id}/cancel", predictions.cancel, "other"),
    ("POST", f"{_MODEL}/predictions", predictions.create, "create"),
    ("POST", f"{_DEPLOYMENT}/predictions", predictions.create, "create"),
    ("POST", f"{_MODEL}/versions/{{version}}/trainings", trainings.create, "create"),
    ("GET", "/trainings", trainings.list_trainings, "other"),
    ("GET", "/trainings/{id}", predictions.get, "other"),
    ("POST", "/trainings/{id}/cancel", predictions.cancel, "other"),
    ("GET", "/models", model_lists.list_all, "other"),
    ("QUERY", "/models", model_lists.search, "other"),
    ("POST", "/models", models.create, "other"),
    ("GET", _MODEL, models.get, "other"),
    ("PATCH", _MODEL, models.change, "other"),
    ("DELETE", _MODEL, models.delete, "other"),
    ("GET", f"{_MODEL}/readme", models.readme, "other"),
    ("GET", f"{_MODEL}/examples", models.examples, "other"),
    ("GET", f"{_MODEL}/versions", models.versions, "other"),
    ("GET", f"{_MODEL}/versions/{{version}}", models.get_version, "other"),
    ("DELETE", f"{_MODEL}/versions/{{version}}", models.remove_version, "other"),
    ("POST", "/files", files.create, "other"),
    ("GET", "/files", files.list_all, "other"),
    ("GET", "/files/{id}", files.get, "other"),
    ("DELETE", "/files/{id}", files.delete, "other"),
    ("POST", "/upload/{filename}", files.begin_upload, "other"),
    ("GET", "/deployments", deployments.list_all, "other"),
    ("POST", "/deployments", deployments.create, "other"),
    ("GET", _DEPLOYMENT, deployments.get, "other"),
    ("PATCH", _DEPLOYMENT, deployments.change, "other"),
    ("DELETE", _DEPLOYMENT, deployments.delete, "other"),
]


def replicate_routes() -> Iterator[Route]:
    """Yield all routes, below each prefix that a client may use."""
    for prefix in PREFIXES:
        for method, path, handler, rate in _ROUTES:
            yield Route(prefix + path, authorized(handler, rate), methods=[method])
        # Whoever was told these addresses may use them.
        yield Route(f"{prefix}/streams/{{id}}/{{capability}}", predictions.follow)
        yield Route(f"{prefix}/files/{{id}}/download", files.download)
        upload = f"{prefix}/uploads/{{id}}/{{capability}}/{{filename}}"
        yield Route(upload, files.get_upload)
        yield Route(upload, files.put_upload, methods=["PUT"])
        yield Route(f"{prefix}/weights/{{id}}/{{capability}}/weights.tar", files.get_weights)
