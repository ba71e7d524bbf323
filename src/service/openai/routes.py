"""OpenAI's API: which handler answers which path below /openai/v1."""

from collections.abc import Iterator

from starlette.routing import Route

from src.service.http.auth import Handler, Rate
from src.service.openai import chat, files, models
from src.service.openai.endpoint import endpoint
from src.service.openai.jobs import handlers as jobs

PREFIX = "/openai/v1"
_JOBS = "/fine_tuning/jobs"
_ROUTES: list[tuple[str, str, Handler, Rate]] = [
    ("POST", "/chat/completions", chat.create_chat_completion, "create"),
    ("POST", "/completions", chat.create_completion, "create"),
    ("POST", "/files", files.create, "other"),
    ("GET", "/files", files.list_all, "other"),
    ("GET", "/files/{id}", files.get, "other"),
    ("DELETE", "/files/{id}", files.delete, "other"),
    ("GET", "/files/{id}/content", files.content, "other"),
    ("POST", _JOBS, jobs.create, "create"),
    ("GET", _JOBS, jobs.list_all, "other"),
    ("GET", f"{_JOBS}/{{id}}", jobs.get, "other"),
    ("POST", f"{_JOBS}/{{id}}/cancel", jobs.cancel, "other"),
    ("POST", f"{_JOBS}/{{id}}/pause", jobs.refuse_pause, "other"),
    ("POST", f"{_JOBS}/{{id}}/resume", jobs.refuse_pause, "other"),
    ("GET", f"{_JOBS}/{{id}}/events", jobs.list_events, "other"),
    ("GET", f"{_JOBS}/{{id}}/checkpoints", jobs.list_checkpoints, "other"),
    ("GET", "/models", models.list_all, "other"),
    ("GET", "/models/{name:path}", models.get, "other"),
    ("DELETE", "/models/{name:path}", models.delete, "other"),
]


def openai_routes() -> Iterator[Route]:
    """Yield all routes."""
    for method, path, handler, rate in _ROUTES:
        yield Route(PREFIX + path, endpoint(handler, rate), methods=[method])
