"""The web application: routes, errors, and the life of the service behind them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from src.service.http.access_log import AccessLog
from src.service.http.body import NoNul
from src.service.http.limits import BodyLimit
from src.service.http.metrics import metrics
from src.service.http.problem import Problem, answer_fault, answer_http_error, answer_problem
from src.service.openai.endpoint import answer_error, unknown_url
from src.service.openai.routes import PREFIX as OPENAI_PREFIX
from src.service.openai.routes import openai_routes
from src.service.page.new.preview import Previews
from src.service.page.routes import page_routes
from src.service.replicate.routes import replicate_routes
from src.service.service import Service

FORM_BYTES = 1 << 20
"""What a form may hold beside its file."""


def make_app(service: Service) -> Starlette:
    """Return the application; the service begins and ends with it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/metrics", metrics),
            *openai_routes(),
            *replicate_routes(),
            *page_routes(),
        ],
        middleware=[
            Middleware(AccessLog),
            Middleware(NoNul, answer=answer_early),
            Middleware(BodyLimit, max_bytes=service.settings.file_bytes + FORM_BYTES),
        ],
        exception_handlers={
            Problem: answer_problem,
            HTTPException: answer_unrouted,
            Exception: answer_fault,
        },
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.settings = service.settings
    app.state.previews = Previews(service)
    return app


async def answer_unrouted(request: Request, error: Exception) -> Response:
    """Answer what no route answers, as the API that was asked does."""
    if _asks_openai(request):
        return unknown_url(request)
    return await answer_http_error(request, error)


def answer_early(request: Request, problem: Problem) -> Response:
    """Answer what is refused before any route sees it, as the API that was asked does."""
    return answer_error(problem) if _asks_openai(request) else problem.response()


def _asks_openai(request: Request) -> bool:
    return request.url.path.startswith(f"{OPENAI_PREFIX}/")


async def health(request: Request) -> Response:
    """GET /health: whether the service takes requests, and how the engine is."""
    service: Service = request.app.state.service
    engine = (
        "ready" if service.engines.is_ready else "failed" if service.engines.error else "starting"
    )
    state = {"status": "ready", "engine": engine}
    if service.engines.error:
        state["error"] = service.engines.error
    return JSONResponse(state)
