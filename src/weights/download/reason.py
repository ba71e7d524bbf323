"""Why a download failed, without a word of the error's own: that may repeat the URL's query."""

from http.client import BadStatusLine, UnknownProtocol

import requests
from urllib3.exceptions import ProtocolError, SSLError
from urllib3.exceptions import TimeoutError as ReadTimeout


def reason(error: Exception) -> str:
    """Return what went wrong, as the end of a sentence."""
    if isinstance(error, requests.Timeout | ReadTimeout):
        return "the server did not answer in time"
    if isinstance(error, requests.exceptions.SSLError | SSLError):
        return "no secure connection"
    if isinstance(error, ProtocolError):
        return "the connection ended before the whole file had arrived"
    if isinstance(error, requests.ConnectionError):
        wrapped = error.args[0] if error.args else None
        return _no_answer(wrapped) if isinstance(wrapped, ProtocolError) else _NO_CONNECTION
    return f"the answer could not be read ({type(error).__name__})"


_NO_CONNECTION = "no connection to the server"


def _no_answer(error: ProtocolError) -> str:
    cause = error.args[-1]
    if isinstance(cause, OSError):
        return "the connection ended before an answer had arrived"
    if isinstance(cause, BadStatusLine | UnknownProtocol):
        return "expected an answer in HTTP/1.1, found something else"
    return "the headers of the answer are too many or too long"
