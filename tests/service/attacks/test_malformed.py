"""Requests that no client should send: each gets a sentence, in the form of the API it asks."""

import base64
import socket
from typing import Any

import pytest
import requests

from tests.service.attacks.conftest import BASE, Attacked

ODD = {
    "null": b"null",
    "half a character": b'"\\ud800"',
    "raw half a character": b'"\xed\xa0\x80"',
    "NUL": b'"a\\u0000"',
    "no number": b"NaN",
    "infinite": b"1e999",
    "400 digits": b"1" + b"0" * 400,
    "5,000 digits": b"1" + b"0" * 5000,
    "500 levels": b"[" * 500 + b"]" * 500,
    "100,000 levels": b"[" * 100_000,
    "list": b"[1]",
    "object": b'{"a": 1}',
    "negative": b"-1",
    "Latin-1": b'"\xff"',
}
PATHS = {
    "/v1/predictions": ("version", "input", "webhook", "webhook_events_filter", "odd\\ud800"),
    "/v1/models": ("owner", "name", "visibility", "description", "odd"),
    "/v1/deployments": ("name", "model", "version", "min_instances"),
    f"/v1/models/{BASE}/versions/x/trainings": ("destination", "input"),
    "/openai/v1/chat/completions": ("model", "messages", "tools", "temperature", "n", "stop"),
    "/openai/v1/completions": ("model", "prompt", "logprobs", "odd\\ud800"),
    "/openai/v1/fine_tuning/jobs": ("model", "training_file", "hyperparameters", "metadata"),
}
INPUTS = ("prompt", "seed", "temperature", "replicate_weights", "tools", "odd")
BOUNDARY = "multipart/form-data; boundary=B"


def assert_refused(answer: requests.Response, *, openai: bool = False) -> None:
    """Assert that a sentence says why, in the form that the API's clients read."""
    assert 400 <= answer.status_code < 500, answer.text
    told = answer.json()
    if openai:
        assert set(told["error"]) == {"message", "type", "param", "code"}
        assert told["error"]["message"]
    else:
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert told["detail"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("path", PATHS)
def test_no_field_makes_the_service_fail(attacked: Attacked, path: str):
    for value in ODD.values():
        bodies = [b'{"%s": %s}' % (field.encode(), value) for field in PATHS[path]]
        for body in [value, *bodies]:
            if body != b"null":
                assert_refused(
                    attacked.ask("POST", path, data=body), openai=path.startswith("/openai")
                )


def test_no_input_makes_the_service_fail(attacked: Attacked):
    for value in ODD.values():
        for name in INPUTS:
            inputs = b'{"prompt": "a", "max_new_tokens": 1, "%s": %s}' % (name.encode(), value)
            body = b'{"version": "%s", "input": %s}' % (BASE.encode(), inputs)
            answer = attacked.ask("POST", "/v1/predictions", data=body)
            if answer.status_code != 201:
                assert_refused(answer)


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("POST", "/v1/predictions", {"headers": {"Cancel-After": "9" * 5000 + "s"}}),
        ("POST", "/v1/predictions", {"headers": {"Cancel-After": "h"}}),
        ("POST", "/v1/predictions", {"headers": {"Prefer": "wait=61"}}),
        ("GET", "/v1/predictions", {"params": {"created_after": "0001-01-01T00:00:00+23:59"}}),
        ("GET", "/v1/predictions", {"params": {"created_before": "9999-12-31T23:59:59-23:59"}}),
        ("GET", "/v1/predictions", {"params": {"cursor": "gICA"}}),
        ("GET", "/v1/search", {"params": {"query": "a " * 5000}}),
        ("QUERY", "/v1/models", {"data": "a " * 4000}),
        ("QUERY", "/v1/models", {"data": "a" * 20_000}),
        ("GET", "/v1/files/%00", {}),
        ("GET", "/v1/predictions/..%2f..%2fetc%2fpasswd", {}),
        ("PUT", "/v1/uploads/a/b/c", {"data": "x"}),
        ("TRACE", "/v1/account", {}),
        ("POST", f"/v1/models/{BASE}", {}),
        ("QUERY", "/openai/v1/models/x", {}),
        ("POST", "/openai/v1/files/x%0Ay", {}),
        ("GET", "/openai/v1/fine_tuning/jobs", {"params": {"limit": "9" * 5000}}),
    ],
)
def test_odd_headers_queries_paths_and_methods_are_refused(
    attacked: Attacked, method: str, path: str, options: dict[str, Any]
):
    if method == "POST" and path == "/v1/predictions":
        options = {"json": {"version": BASE, "input": {"prompt": "a"}}, **options}
    assert_refused(attacked.ask(method, path, **options), openai=path.startswith("/openai"))


def _part(name: str, text: str, file: str | None = None) -> str:
    named = f'name="{name}"' + ("" if file is None else f'; filename="{file}"')
    return f"--B\r\nContent-Disposition: form-data; {named}\r\n\r\n{text}\r\n"


@pytest.mark.parametrize("path", ["/v1/files", "/openai/v1/files"])
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", "{}"),
        ("multipart/form-data", "x"),
        (BOUNDARY, "no form"),
        (BOUNDARY, "--B\r\n\r\nx\r\n--B--\r\n"),
        (BOUNDARY, _part("content", "x") + "--B--\r\n"),
        (BOUNDARY, _part("metadata", "x" * (2 << 20)) + "--B--\r\n"),
        (f"{BOUNDARY}; charset=undefined", _part("file", "x", "f") + "--B--\r\n"),
    ],
)
def test_broken_forms_are_refused(attacked: Attacked, path: str, kind: str, body: str):
    answer = attacked.ask("POST", path, data=body, headers={"Content-Type": kind})
    assert_refused(answer, openai=path.startswith("/openai"))


@pytest.mark.parametrize(
    "part",
    [("type", "a/b\r\nX-Evil: 1"), ("type", "a/\u00e9"), ("type", "x")]
    + [("metadata", text) for text in ('{"a": NaN}', '{"a": "\\ud800"}', "[")],
)
def test_what_no_header_and_no_json_can_hold_is_not_stored(
    attacked: Attacked, part: tuple[str, str]
):
    body = (_part("content", "x", "f") + _part(*part) + "--B--\r\n").encode()
    answer = attacked.ask("POST", "/v1/files", data=body, headers={"Content-Type": BOUNDARY})
    assert_refused(answer)


@pytest.mark.parametrize("charset", ["utf-7", "raw_unicode_escape"])
def test_a_name_in_a_strange_charset_is_stored_as_unicode(attacked: Attacked, charset: str):
    body = _part("content", "x", "\\ud800+2AA-") + "--B--\r\n"
    kind = {"Content-Type": f"{BOUNDARY}; charset={charset}"}
    answer = attacked.ask("POST", "/v1/files", data=body, headers=kind)
    assert answer.status_code == 201, answer.text


def test_a_number_in_the_place_of_bytes_takes_no_memory(attacked: Attacked):
    model = {"owner": "mallory", "name": "buffers", "visibility": "private", "hardware": "cpu"}
    assert attacked.ask("POST", "/v1/models", json=model).ok
    version = attacked.ask("GET", f"/v1/models/{BASE}").json()["latest_version"]["id"]
    inputs = {"train_data": {"type": "Buffer", "data": 1 << 40}}
    body = {"destination": "mallory/buffers", "input": inputs}
    path = f"/v1/models/{BASE}/versions/{version}/trainings"
    assert_refused(attacked.ask("POST", path, json=body))


@pytest.mark.parametrize("host", ["[", "[::1]:x", "a b", "evil.example:99999", 'x"<>', "\\\\x"])
def test_a_strange_host_breaks_nothing(attacked: Attacked, host: str):
    headers = {"Host": host}
    inputs = {"prompt": "a", "replicate_weights": f"http://{host}/v1/files/other"}
    body = {"version": BASE, "input": inputs}
    for answer in (
        attacked.ask("GET", "/v1/predictions", headers=headers),
        attacked.ask("POST", "/v1/upload/x", headers=headers),
        attacked.ask("POST", "/v1/predictions", json=body, headers=headers),
        attacked.ask("GET", "/openai/v1/models", headers=headers),
    ):
        assert answer.status_code < 500, answer.text


def test_the_log_holds_nothing_of_it(attacked: Attacked):
    secret = base64.b32encode(b"a secret of mallory").decode()
    attacked.ask("POST", "/v1/predictions", json={"version": BASE, "input": {"prompt": secret}})
    attacked.ask("POST", "/v1/models", data=b'{"owner": "%s\\ud800"}' % secret.encode())
    attacked.ask("GET", f"/v1/search?query={secret}")
    prediction = attacked.predict()
    assert requests.get(prediction["urls"]["stream"], timeout=30).ok
    log = attacked.log.read_text()
    capability = prediction["urls"]["stream"].rpartition("/")[2]
    for hidden in (secret, capability, *attacked.tokens.values()):
        assert hidden not in log
    assert "traceback" not in log


def test_a_body_that_breaks_off_is_no_fault(attacked: Attacked):
    upload = attacked.ask("POST", "/v1/upload/x").json()["upload_url"].removeprefix(attacked.url)
    host, port = attacked.url.removeprefix("http://").split(":")
    for method, path in (("PUT", upload), ("POST", "/v1/files"), ("POST", "/openai/v1/files")):
        with socket.create_connection((host, int(port))) as connection:
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n"
                f"Authorization: Bearer {attacked.tokens['mallory']}\r\n"
                f"Content-Type: {BOUNDARY}\r\n\r\n--B\r\n"
            )
            connection.sendall(head.encode())
    assert attacked.predict()
    assert "traceback" not in attacked.log.read_text()
