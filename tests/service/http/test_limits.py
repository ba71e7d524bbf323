"""No client asks for more than it may, and each is told when to ask again."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from src.service.http.limits import BodyLimit, RateLimits, check_stored, check_unfinished
from src.service.http.problem import Problem, answer_problem
from tests.service.serving import serving


class Clock:
    """A time that only a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def body_of(problem: Problem) -> dict:
    return json.loads(bytes(problem.response().body))


def test_a_burst_is_answered_until_the_bucket_is_empty():
    clock = Clock()
    limits = RateLimits(600, 3000, clock=clock)
    headers = [limits.take("ann", "create") for _ in range(600)]
    assert headers[0] == {"ratelimit-remaining": "599", "ratelimit-reset": "1"}
    assert headers[-1] == {"ratelimit-remaining": "0", "ratelimit-reset": "60"}
    with pytest.raises(Problem) as caught:
        limits.take("ann", "create")
    answer = caught.value.response()
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["ratelimit-remaining"] == "0"
    assert answer.headers["content-type"] == "application/problem+json"
    detail = "Request was throttled. Your rate limit resets in ~1s."
    assert body_of(caught.value)["detail"] == detail
    assert limits.take("ann", "other")["ratelimit-remaining"] == "2999"
    assert limits.take("bob", "create")["ratelimit-remaining"] == "599"


def test_who_waits_as_told_is_answered():
    clock = Clock()
    limits = RateLimits(2, 2, clock=clock)
    for _ in range(2):
        limits.take("ann", "other")
    with pytest.raises(Problem) as caught:
        limits.take("ann", "other")
    clock.now += int(caught.value.response().headers["retry-after"])
    limits.take("ann", "other")


@given(st.integers(1, 5000), st.lists(st.floats(0, 30), min_size=1, max_size=300))
def test_no_minute_has_more_than_a_full_bucket_and_what_came_in_since(
    per_minute: int, pauses: list[float]
):
    clock = Clock()
    limits = RateLimits(per_minute, per_minute, clock=clock)
    num_taken = 0
    for pause in pauses:
        clock.now += pause
        try:
            headers = limits.take("ann", "create")
        except Problem:
            continue
        num_taken += 1
        assert 0 <= int(headers["ratelimit-remaining"]) < per_minute
        assert 1 <= int(headers["ratelimit-reset"]) <= 60
    assert num_taken <= per_minute + (clock.now - Clock.now) * per_minute / 60 + 1e-6


def test_runs_and_stored_bytes_have_a_limit():
    check_unfinished(9, 10)
    check_stored(60, 40, 100)
    for check, arguments in ((check_unfinished, (10, 10)), (check_stored, (60, 41, 100))):
        with pytest.raises(Problem) as caught:
            check(*arguments)
        answer = caught.value.response()
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")
        assert body_of(caught.value)["detail"].startswith("You ")


async def echo_length(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def ignore(request: Request) -> Response:
    return PlainTextResponse("ignored")


async def read_form(request: Request) -> Response:
    async with request.form() as form:
        return PlainTextResponse(str(form["content"].size))  # type: ignore[union-attr]


@pytest.fixture
def app() -> Starlette:
    routes = [
        Route("/echo", echo_length, methods=["POST"]),
        Route("/ignore", ignore, methods=["POST"]),
        Route("/form", read_form, methods=["POST"]),
    ]
    limit = Middleware(BodyLimit, max_bytes=1000)
    return Starlette(
        routes=routes, middleware=[limit], exception_handlers={Problem: answer_problem}
    )


async def chunks_of(num_bytes: int, asked: list[int]) -> AsyncIterator[bytes]:
    for at in range(0, num_bytes, 100):
        asked.append(at)
        yield bytes(min(100, num_bytes - at))


@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_body_is_read_up_to_its_limit(app: Starlette, is_chunked: bool):
    async def run() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def post(path: str, num_bytes: int) -> tuple[httpx.Response, int]:
                asked: list[int] = []
                chunks = chunks_of(num_bytes, asked)
                content = chunks if is_chunked else bytes(num_bytes)
                return await client.post(path, content=content), len(asked)

            for num_bytes in (0, 1, 1000):
                answer, _ = await post("/echo", num_bytes)
                assert (answer.status_code, answer.text) == (200, str(num_bytes))
            for num_bytes in (1001, 1_000_000):
                answer, num_asked = await post("/echo", num_bytes)
                assert answer.status_code == 413
                assert answer.headers["content-type"] == "application/problem+json"
                assert (
                    answer.json()["detail"] == "expected a body of at most 1,000 bytes, found more"
                )
                assert num_asked <= 11
            answer, _ = await post("/ignore", 2000)
            assert answer.text == "ignored"

    asyncio.run(run())


def test_an_uploaded_form_has_a_limit_too(app: Starlette):
    async def statuses() -> AsyncIterator[int]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for num_bytes in (500, 1000):
                answer = await client.post("/form", files={"content": bytes(num_bytes)})
                yield answer.status_code

    async def run() -> list[int]:
        return [status async for status in statuses()]

    assert asyncio.run(run()) == [200, 413]


PREDICTION = {"version": "meta/llama-2-7b-chat", "input": {"prompt": "?"}}
FILE = ("f", b"x" * 1000)
CREATE = ("POST", "/v1/predictions", {"json": PREDICTION})
UPLOAD = ("POST", "/v1/files", {"files": {"content": FILE}})
OPENAI_UPLOAD = (
    "POST", "/openai/v1/files", {"files": {"file": FILE}, "data": {"purpose": "fine-tune"}}
)  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "allowed", "refused"),
    [
        ({"creates_per_minute": 1}, CREATE, [CREATE, ("POST", "/openai/v1/completions", {})]),
        (
            {"requests_per_minute": 1},
            ("GET", "/v1/account", {}),
            [("GET", "/v1/models", {}), ("GET", "/openai/v1/models", {})],
        ),
        ({"unfinished_limit": 1}, CREATE, [CREATE, UPLOAD]),
        ({"stored_bytes": 1500}, UPLOAD, [UPLOAD, OPENAI_UPLOAD]),
        ({"stored_bytes": 1010}, UPLOAD, [CREATE]),
    ],
)
def test_each_limit_is_told_to_its_owner_alone(
    tmp_path: Path, limits: dict[str, int], allowed: Any, refused: list[Any]
):
    async def run() -> None:
        async with serving(tmp_path, **limits) as served:
            (method, path, options) = allowed
            assert (await served.ann.request(method, path, **options)).is_success
            for method, path, options in refused:
                answer = await served.ann.request(method, path, **options)
                assert answer.status_code == 429, answer.text
                assert 1 <= int(answer.headers["retry-after"]) <= 60
                told = answer.json()
                if path.startswith("/openai/"):
                    assert told["error"]["type"] == "rate_limit_error"
                else:
                    assert told["detail"]
            method, path, options = allowed
            assert (await served.bob.request(method, path, **options)).is_success

    asyncio.run(run())
