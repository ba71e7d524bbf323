"""Errors as Replicate's clients read them: problem+json, with all that matters in `detail`."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """Why a request is refused; the message is for the user."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        title: str | None = None,
        headers: Mapping[str, str] | None = None,
        invalid_fields: Sequence[Mapping[str, str]] = (),
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.title = status, detail, title
        self.headers, self.invalid_fields = headers, invalid_fields

    def response(self) -> Response:
        """Return the answer that says so."""
        body: dict[str, Any] = {"detail": self.detail, "status": self.status}
        if self.title is not None:
            body = {"title": self.title, **body}
        if self.invalid_fields:
            body["invalid_fields"] = list(self.invalid_fields)
        return JSONResponse(
            body, self.status, media_type=MEDIA_TYPE, headers=dict(self.headers or {})
        )


def not_found(what: str = "The requested resource") -> Problem:
    """Return the answer for what is not there, or is another owner's: nobody can tell which."""
    return Problem(404, f"{what} could not be found", title="Not found")


def invalid(field: str, description: str, kind: str = "invalid_type") -> Problem:
    """Return the answer for one field that cannot be meant."""
    return Problem(
        422,
        f"- {field}: {description}\n",
        title="Input validation failed",
        invalid_fields=[{"type": kind, "field": field, "description": description}],
    )


async def answer_problem(request: Request, error: Exception) -> Response:
    """Answer with the problem that a handler raised."""
    assert isinstance(error, Problem)
    return error.response()


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Answer what no route answers."""
    status = getattr(error, "status_code", 500)
    detail = "Not found" if status == 404 else str(getattr(error, "detail", "")) or "Error"
    headers = getattr(error, "headers", None)
    return Problem(
        status, f"{detail}: {request.method} {request.url.path[:200]}", headers=headers
    ).response()


async def answer_fault(request: Request, error: Exception) -> Response:
    """Answer for a fault of the service, which its log tells."""
    return Problem(500, "The service failed; its log says more", title="Internal error").response()
