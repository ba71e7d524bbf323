"""No database takes a NUL character, and no request with one makes the service fail."""

import asyncio
import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from src.service.openai.routes import openai_routes
from src.service.page.routes import page_routes
from src.service.replicate.routes import replicate_routes
from tests.service.serving import Served, serving

BASE = "meta/llama-2-7b-chat"
CURSOR = base64.urlsafe_b64encode(b"2026-01-01T00:00:00.000000Z a\0b").decode()
BODIES: dict[str, dict[str, Any]] = {
    "/v1/predictions": {"version": "a\0", "input": {"prompt": "a"}},
    f"/v1/models/{BASE}/predictions": {"input": {"prompt": "a\0"}},
    f"/v1/models/{BASE}/versions/x/trainings": {"destination": "ann/\0", "input": {}},
    "/v1/models": {"owner": "ann", "name": "\0", "visibility": "private", "hardware": "cpu"},
    "/v1/deployments": {
        "name": "d", "model": BASE, "version": "\0", "hardware": "cpu", "min_instances": 0,
        "max_instances": 1,
    },
    "/openai/v1/chat/completions": {"model": "a\0", "messages": [{"role": "user", "content": ""}]},
    "/openai/v1/completions": {"model": "a\0", "prompt": "a"},
    "/openai/v1/fine_tuning/jobs": {"model": BASE, "training_file": "file-\0"},
}  # fmt: skip
FORMS = {
    "/playground": {"prompt": "a", "left": "\0"},
    "/new": {"train_data": "\0", "destination": "m"},
    "/new/report": {"train_data": "\0"},
    "/create": {"name": "\0", "visibility": "private"},
}


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("postgres_url") if request.param == "postgres" else None


def odd_paths() -> Iterator[tuple[str, str]]:
    """Yield each method and path that takes something, with NUL for all of it."""
    for route in (*openai_routes(), *replicate_routes(), *page_routes()):
        if isinstance(route, Route) and "{" in route.path:
            for method in sorted((route.methods or {"GET"}) - {"HEAD"}):
                yield method, re.sub(r"\{[^}]*\}", "a%00", route.path)


def assert_refused(answer: httpx.Response, what: object) -> None:
    assert 400 <= answer.status_code < 500, (what, answer.status_code, answer.text[:300])


async def sign_in(served: Served) -> None:
    served.ann.headers["Origin"] = served.url
    token = served.ann.headers["Authorization"].removeprefix("Bearer ")
    assert (await served.ann.post("/sign-in", data={"token": token})).status_code == 303


def test_text_that_no_database_takes_is_refused(tmp_path: Path, database_url: str | None):
    async def run() -> None:
        async with serving(tmp_path, database_url=database_url) as served:
            await sign_in(served)
            for method, path in odd_paths():
                assert_refused(await served.ann.request(method, path), (method, path))
            for path in ("/v1/predictions", "/openai/v1/fine_tuning/jobs", "/", "/playground"):
                assert_refused(await served.ann.get(f"{path}?after=%00&left=%00&source=%00"), path)
            for path in ("/v1/predictions", "/v1/models", "/v1/files"):
                assert_refused(await served.ann.get(f"{path}?cursor={CURSOR}"), path)
            for path, body in BODIES.items():
                assert_refused(await served.ann.post(path, json=body), path)
            for path, form in FORMS.items():
                assert_refused(await served.ann.post(path, data=form), path)
            form = {"metadata[a\0]": "b\0", "filename": "c\0"}
            answer = await served.ann.post("/v1/files", data=form, files={"content": ("f", b"x")})
            assert_refused(answer, "/v1/files")

    asyncio.run(run())
