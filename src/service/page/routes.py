"""The page: which handler answers which path."""

import re

from starlette.convertors import StringConvertor, register_url_convertor
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from src.service.http.auth import Handler
from src.service.http.limits import BodyLimit, Rate
from src.service.page import models, overview, playground, runs
from src.service.page.answer import FOLDER, PageHeaders
from src.service.page.lists import files
from src.service.page.lists import runs as all_runs
from src.service.page.new import start
from src.service.page.session import Endpoint, sign_in, sign_out, signed_in
from src.service.store.tokens import PATHS

FORM_BYTES = 4 << 20
_MODEL = "/{owner:page_owner}/{name}"
_ROUTES: list[tuple[str, str, Handler, Rate]] = [
    ("GET", "/", overview.show, "other"),
    ("GET", "/state", overview.state, "other"),
    ("GET", "/create", models.show_all, "other"),
    ("POST", "/create", models.create, "other"),
    ("GET", "/new", start.show, "other"),
    ("POST", "/new", start.start, "create"),
    ("POST", "/new/upload", start.upload, "other"),
    ("POST", "/new/report", start.report, "create"),
    ("GET", "/playground", playground.show, "other"),
    ("POST", "/playground", playground.ask, "create"),
    ("GET", "/runs", all_runs.show, "other"),
    ("GET", "/uploads", files.show, "other"),
    ("POST", "/uploads/{id}/delete", files.delete, "other"),
    ("GET", "/runs/{id}", runs.show, "other"),
    ("GET", "/runs/{id}/state", runs.state, "other"),
    ("POST", "/runs/{id}/cancel", runs.cancel, "other"),
    ("GET", _MODEL, models.show, "other"),
    ("POST", f"{_MODEL}/delete", models.delete, "other"),
    ("POST", f"{_MODEL}/versions/{{version}}/delete", models.delete_version, "other"),
]


class _PageOwner(StringConvertor):
    """An owner in a path, which nothing else of the service begins with."""

    regex = rf"(?!(?:{'|'.join(map(re.escape, PATHS))})/)[^/]+"


def page_routes() -> list[BaseRoute]:
    """Return all routes; they come after those of the APIs."""
    register_url_convertor("page_owner", _PageOwner())
    routes: list[BaseRoute] = [
        _route(path, signed_in(handler, rate), method) for method, path, handler, rate in _ROUTES
    ]
    static = StaticFiles(directory=FOLDER / "static")
    return [
        *routes,
        _route("/sign-in", sign_in, "GET"),
        _route("/sign-in", sign_in, "POST"),
        _route("/sign-out", sign_out, "POST"),
        Mount("/static", static, middleware=[Middleware(PageHeaders)]),
    ]


def _route(path: str, endpoint: Endpoint, method: str) -> Route:
    guards = [Middleware(PageHeaders)]
    if path != "/new/upload":
        guards.append(Middleware(BodyLimit, max_bytes=FORM_BYTES))
    return Route(path, endpoint, methods=[method], middleware=guards)
