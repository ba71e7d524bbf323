"""Every route, asked with the token of one owner and the ids of another."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from src.service.openai.routes import openai_routes
from src.service.replicate.routes import replicate_routes

KINDS = ("predictions", "trainings", "files", "openai_files", "jobs", "version")
_NAMES_A_THING = re.compile(r"\{(id|owner|name|name:path|version)\}")


def things_of(client: httpx.Client, owner: str) -> dict[str, str]:
    """Return a thing of each kind that an owner has, by what routes call it."""

    def first(path: str, key: str) -> str:
        listed = client.get(path).raise_for_status().json()
        rows = listed["results" if "results" in listed else "data"]
        return next((row[key] for row in rows), "none")

    versions = f"/v1/models/{owner}/tuned/versions"
    return {
        "predictions": first("/v1/predictions", "id"),
        "trainings": first("/v1/trainings", "id"),
        "files": first("/v1/files", "id"),
        "openai_files": first("/openai/v1/files", "id"),
        "jobs": first("/openai/v1/fine_tuning/jobs", "id"),
        "version": first(versions, "id"),
        "owner": owner,
        "name": "tuned",
    }


def answers_to_strangers(client: httpx.Client, things: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each answer that tells a stranger of another owner's things."""
    for route in (*replicate_routes(), *openai_routes()):
        for method in sorted((route.methods or {"GET"}) - {"HEAD"}):
            if _NAMES_A_THING.search(route.path):
                for path in _paths(route.path, things):
                    answer = client.request(method, path, **_body(method))
                    if answer.status_code < 400:
                        yield f"{method} {path}: {answer.status_code}, {answer.text[:200]}"
            elif method == "GET" and "{" not in route.path:
                shown = client.get(route.path).text
                for kind in KINDS:
                    if things[kind] in shown:
                        yield f"GET {route.path} shows {kind} of another owner"


def _paths(path: str, things: Mapping[str, str]) -> Iterator[str]:
    values = {"owner": things["owner"], "name": things["name"], "version": things["version"]}
    values |= {"name:path": things["version"], "capability": "0" * 48, "filename": "data.jsonl"}
    ids = KINDS if "{id}" in path else KINDS[:1]
    for filled in ({**values, "id": things[kind]} for kind in ids):
        yield re.sub(r"\{([^}]*)\}", lambda part, filled=filled: filled[part[1]], path)


def _body(method: str) -> dict[str, Any]:
    return {"json": {"input": {"prompt": "?"}}} if method in ("POST", "PATCH") else {}
