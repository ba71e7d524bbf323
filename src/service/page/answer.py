"""The page's answers: HTML from templates, and headers that let a browser load nothing foreign."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.files.printable import show_bytes
from src.service.http.problem import Problem

FOLDER = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # With no-referrer a browser would not tell the origin of a form.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_templates = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["bytes"] = show_bytes


class PageHeaders:
    """Middleware that adds the headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-cache" if "etag" in headers else "no-store")
            await send(message)

        await self._app(scope, receive, send_guarded)


def render(template: str, **values: Any) -> Markup:
    """Return the HTML of a template."""
    return Markup(_templates.get_template(template).render(values))


def html(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """Answer with a whole page, for whoever is signed in."""
    owner = getattr(request.state, "owner", None)
    return HTMLResponse(render(template, owner=owner, here=request.url.path, **values), status)


def show_problem(request: Request, problem: Problem) -> Response:
    """Answer with the reason why a request is refused."""
    title = {404: "Not found", 403: "Not allowed", 429: "Too much at once"}
    return html(
        request,
        "problem.html",
        status=problem.status,
        title=title.get(problem.status, problem.title or "This cannot be done"),
        detail=problem.detail,
    )


def see(path: str) -> Response:
    """Send the browser to another page after a form."""
    return RedirectResponse(path, 303)
