"""Who looks at the page: a token opens a session, whose cookie only this service can have made."""

import time
from collections.abc import Awaitable, Callable
from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import Response

from src.service.http.addresses import base_url
from src.service.http.auth import Handler
from src.service.http.limits import Rate
from src.service.http.problem import Problem
from src.service.page.answer import html, see, show_problem
from src.service.service import Service
from src.service.store.tokens import hash_token

COOKIE = "cog_finetune_session"
SESSION_SECONDS = 7 * 24 * 3600
Endpoint = Callable[[Request], Awaitable[Response]]


def signed_in(handler: Handler, rate: Rate = "other") -> Endpoint:
    """Return an endpoint for who is signed in; others are asked for a token."""

    async def endpoint(request: Request) -> Response:
        owner = await _owner(request)
        if owner is None:
            path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            wanted = path if request.method == "GET" else "/"
            return see(f"/sign-in?next={quote(wanted)}")
        request.state.owner = owner
        try:
            _check_origin(request)
            request.app.state.service.rate_limits.take(owner, rate)
            return await handler(request, owner)
        except Problem as problem:
            return show_problem(request, problem)

    return endpoint


async def sign_in(request: Request) -> Response:
    """GET and POST /sign-in: a token for a session."""
    service: Service = request.app.state.service
    wanted = _local_path(request.query_params.get("next", "/"))
    if request.method == "GET":
        return html(request, "sign_in.html", wanted=wanted, error=None)
    try:
        _check_origin(request)
        service.rate_limits.take(request.client.host if request.client else "", "other")
    except Problem as problem:
        return show_problem(request, problem)
    async with request.form() as form:
        key = hash_token(str(form.get("token", "")).strip())
    if await service.owners.find(key) is None:
        error = "This is no token of the service: it is shown once, at the first start"
        return html(request, "sign_in.html", status=403, wanted=wanted, error=error)
    response = see(wanted)
    expiry = str(int(time.time()) + SESSION_SECONDS)
    response.set_cookie(
        COOKIE,
        f"{key}.{expiry}.{service.signer.sign_session(f'{key}.{expiry}')}",
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure=base_url(request).startswith("https:"),
    )
    return response


async def sign_out(request: Request) -> Response:
    """POST /sign-out."""
    try:
        _check_origin(request)
    except Problem as problem:
        return show_problem(request, problem)
    response = see("/sign-in")
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


async def _owner(request: Request) -> str | None:
    """Return whose session it is; a token that was removed ends its sessions."""
    service: Service = request.app.state.service
    key, _, rest = request.cookies.get(COOKIE, "").partition(".")
    expiry, _, signature = rest.partition(".")
    is_signed = service.signer.is_session(f"{key}.{expiry}", signature)
    if not is_signed or int(expiry) < time.time():
        return None
    return await service.owners.find(key)


def _check_origin(request: Request) -> None:
    """Raise Problem for a form that another site sends."""
    if request.method == "GET":
        return
    origin = urlsplit(request.headers.get("origin", "")).netloc
    if origin not in (request.headers.get("host"), urlsplit(base_url(request)).netloc):
        raise Problem(403, "expected a form of this page, found one of another site")


def _local_path(path: str) -> str:
    is_local = path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if is_local and path.isprintable() else "/"
