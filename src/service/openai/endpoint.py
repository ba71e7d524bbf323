"""Endpoints whose every answer, errors included, is of the form that OpenAI's clients read."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from src.service.http.auth import Endpoint, Handler, Rate, authorized
from src.service.http.problem import Problem
from src.service.openai.errors import ApiError
from src.service.service import Service
from src.service.work.engine_client import EngineError

log = logging.getLogger("service.openai")
Result = TypeVar("Result")


def endpoint(handler: Handler, rate: Rate = "other") -> Endpoint:
    """Return an endpoint for requests with a token."""
    guarded = authorized(handler, rate)

    async def answer(request: Request) -> Response:
        try:
            return await guarded(request)
        except (ApiError, Problem, EngineError) as error:
            return answer_error(error)
        except Exception:
            log.exception("%s %s", request.method, request.url.path)
            return answer_error(ApiError(500, "The service failed; its log says more"))

    return answer


def answer_error(error: ApiError | Problem | EngineError) -> Response:
    """Return the answer that tells an error."""
    told = as_api_error(error)
    return JSONResponse(told.body(), told.status, headers=told.headers)


def as_api_error(error: ApiError | Problem | EngineError) -> ApiError:
    """Return an error of any part of the service in OpenAI's form."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineError):
        return ApiError(503, str(error))
    param = error.invalid_fields[0]["field"] if error.invalid_fields else None
    status = 400 if error.status == 422 else error.status
    code = "invalid_api_key" if status == 401 else None
    message = error.detail.strip().removeprefix("- ")
    return ApiError(status, message, param=param, code=code, headers=error.headers)


def unknown_url(request: Request) -> Response:
    """Answer for what this API does not have."""
    message = f"Unknown request URL: {request.method} {request.url.path[:200]}"
    return answer_error(ApiError(404, message, code="unknown_url"))


def service_of(request: Request) -> Service:
    """Return the service that a request came to."""
    return request.app.state.service


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return what a coroutine returns; it is canceled when the client goes away."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "the client has gone")
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
