"""HTTP with a server on this machine: the session, and its errors as sentences."""

import re

import requests

HOST = "127.0.0.1"
_WRAPPING = re.compile(
    r"^(?:(?:Async prediction|Prediction|Training) failed: |Generator iteration error: "
    r"|(?:UserError|HttpError|ValueError|TrainingError|RuntimeError): |Input validation error: )+"
)
_NO_CONNECTION = re.compile(
    r"HTTPS?ConnectionPool\(host='([^']+)', port=(\d+)\): .* with url: (\S+) \(Caused by .*\)"
)


class RequestError(Exception):
    """The request failed; the message is for the user."""


def plain_error(error: str) -> str:
    """Return the sentence of an error without what Cog and Python put before it."""
    error = _WRAPPING.sub("", error)
    return _NO_CONNECTION.sub(r"could not download \3 from \1:\2: no connection", error)


def http_session() -> requests.Session:
    """Return a session that goes straight to loopback, whatever proxy the environment names."""
    session = requests.Session()
    session.trust_env = False
    return session


def check_answer(answer: requests.Response) -> None:
    """Raise RequestError for a request that the server refused, with its reasons."""
    if answer.status_code < 400:
        return
    try:
        details = answer.json()["detail"]
        lines = [f"{error['loc'][-1]}: {error['msg']}" for error in details]
    except (ValueError, KeyError, TypeError):
        lines = [f"the server refused the request: {answer.status_code} {answer.text[:200]}"]
    raise RequestError("\n".join(lines))
