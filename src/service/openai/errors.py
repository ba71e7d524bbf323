"""Errors as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}}."""

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """Why a request is refused; the message is for the user."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the JSON that says so, of an answer or of an event in a stream."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


def bad_request(param: str, expected: str, code: str = "invalid_value") -> ApiError:
    """Return the answer for one field that cannot be meant."""
    return ApiError(400, f"{param}: {expected}", param=param, code=code)


def no_such_model(name: str) -> ApiError:
    """Return the answer for a model that is not there, or is another owner's."""
    message = f"The model `{name}` does not exist or you do not have access to it."
    return ApiError(404, message, param="model", code="model_not_found")
