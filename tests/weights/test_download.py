"""A download is the whole file or a sentence, whatever the server does."""

import gzip
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.errors import UserError
from src.weights.download.download import HttpError, fetch
from tests.weights.http_server import drip, serving

BODY = b"hello" * 100
CHUNK = b"1f4\r\n" + BODY + b"\r\n"
SECRET = "X-Amz-Signature=abcdef"


def raw(answer: bytes):
    """Answer with exactly these bytes and hang up."""

    def send(handler):
        handler.wfile.write(answer)
        handler.close_connection = True

    return send


def chunked(*parts: bytes):
    return raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(parts))


def transferred(encoding: bytes):
    return raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + encoding + b"\r\n\r\n" + CHUNK + b"0\r\n\r\n"
    )


def stating(length: int, body: bytes = b""):
    return raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + body)


def redirect(location: str, status: int = 302):
    return lambda handler: handler.reply(status, b"", Location=location)


def moved(location: bytes):
    return raw(b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n")


def gzipped(handler):
    handler.reply(200, BODY, Content_Encoding="gzip")


GOOD = {
    "/length": BODY,
    "/chunked": chunked(CHUNK, b"0\r\n\r\n"),
    "/until-close": raw(b"HTTP/1.0 200 OK\r\n\r\n" + BODY),
    "/moved": redirect("/length", 301),
    "/moved-twice": redirect("moved", 307),
    "/to-utf-8": moved("/größe".encode()),
    "/gr%C3%B6%C3%9Fe": BODY,
    "/to-latin-1": moved("/große".encode("latin-1")),
    "/gro%DFe": BODY,
    "/to-blank": moved(b"/a b"),
    "/a%20b": BODY,
    "/encoding-blank": raw(b"HTTP/1.0 200 OK\r\nContent-Encoding: \r\n\r\n" + BODY),
    "/transfer-identity": raw(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: identity\r\n\r\n" + BODY),
    "/typed": lambda handler: handler.reply(200, BODY, Content_Type="text/html"),
}
BAD = {
    "/none": (None, "HTTP 404"),
    "/forbidden": (lambda handler: handler.reply(403, b"<Error/>"), "HTTP 403"),
    "/broken": (lambda handler: handler.reply(500, b""), "HTTP 500"),
    "/part": (lambda handler: handler.reply(206, BODY), "HTTP 206"),
    "/cut": (stating(900, BODY), "could not download .*: the connection ended"),
    "/chunk-cut": (chunked(CHUNK[:100]), "connection ended"),
    "/chunk-end-missing": (chunked(CHUNK), "connection ended"),
    "/chunk-size": (chunked(b"zz\r\n"), "could not"),
    "/said-too-large": (stating(5000), "larger than 2,000 bytes"),
    "/is-too-large": (chunked(CHUNK * 5, b"0\r\n\r\n"), "larger than 2,000 bytes"),
    "/gzip": (gzipped, "Content-Encoding"),
    "/transfer-gzip": (transferred(b"gzip, chunked"), "found a Transfer-Encoding"),
    "/noise": (raw(b"\0\1\2\3\r\n\r\n"), "expected an answer in HTTP/1.1"),
    "/html": (raw(b"<html>hello</html>"), "expected an answer in HTTP/1.1"),
    "/http-2": (raw(b"HTTP/2 200 OK\r\n\r\nhello"), "expected an answer in HTTP/1.1"),
    "/silence": (raw(b""), "ended before an answer had arrived"),
    "/headers": (
        raw(b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 60_000 + b"\r\n"),
        "too many or too lo",
    ),
    "/header": (
        raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 150_000 + b"\r\n\r\n"),
        "too many or too long",
    ),
    "/loop": (redirect("/loop"), "more than 10 redirects"),
    "/to-file": (redirect("file:///etc/passwd"), "expected an http or https URL"),
    "/to-data": (redirect("data:,hello"), "expected an http or https URL"),
    "/to-password": (redirect("http://me:hunter2@127.0.0.1/"), "user name or password"),
    "/to-port-zero": (redirect("http://127.0.0.1:0/"), "not a valid URL"),
    "/to-bracket": (redirect("http://[::1"), "which redirects elsewhere: not a valid URL"),
    "/to-space": (redirect("http://127.0.0.1 .example.org/"), "not a valid URL: .*HOST/PATH"),
    "/to-backslash": (redirect("\\\\127.0.0.1\\x"), "which redirects elsewhere: .* backslashes"),
    "/to-long": (redirect("/" + "a" * 9000), "which redirects elsewhere: .* at most 8,192"),
    "/to-star": (redirect("http://*/"), "not a valid URL"),
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving({**GOOD, **{route: answer for route, (answer, _) in BAD.items()}}) as address:
        yield address


@pytest.mark.parametrize("route", GOOD)
def test_whole_files_arrive(tmp_path: Path, address: str, route: str):
    fetch(f"{address}{route}?{SECRET}", tmp_path / "file", max_bytes=len(BODY))
    assert (tmp_path / "file").read_bytes() == BODY
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("route", BAD)
def test_anything_else_is_an_error_and_leaves_nothing(tmp_path: Path, address: str, route: str):
    with pytest.raises(UserError, match=BAD[route][1]) as caught:
        fetch(f"{address}{route}?{SECRET}", tmp_path / "file", max_bytes=2000, timeout_seconds=10)
    for secret in ("Signature", "abcdef", "hunter2"):
        assert secret not in str(caught.value)
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


def test_the_body_of_a_redirect_is_not_read(tmp_path: Path):
    packed = gzip.compress(b"\0" * 2**27, 1)

    def bomb(handler):
        handler.reply(302, packed, Location="/file", Content_Encoding="gzip")

    tracemalloc.start()
    try:
        with serving({"/bomb": bomb, "/file": BODY}) as address:
            fetch(f"{address}/bomb", tmp_path / "file", max_bytes=2000)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_status_can_be_asked_for(tmp_path: Path):
    with serving({}) as address, pytest.raises(HttpError) as caught:
        fetch(f"{address}/none", tmp_path / "file", max_bytes=10)
    assert caught.value.status == 404


def test_a_file_that_is_there_stays_when_the_download_fails(tmp_path: Path):
    (tmp_path / "file").write_text("old")
    with serving({"/file": BODY}) as address:
        with pytest.raises(UserError):
            fetch(f"{address}/none", tmp_path / "file", max_bytes=2000)
        assert (tmp_path / "file").read_text() == "old"
        fetch(f"{address}/file", tmp_path / "file", max_bytes=2000)
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_server_that_is_gone_is_said(tmp_path: Path):
    with serving({"/file": BODY}) as address:
        pass
    with pytest.raises(UserError, match="no connection to the server"):
        fetch(f"{address}/file", tmp_path / "file", max_bytes=2000, timeout_seconds=5)


def wait(handler):
    time.sleep(2)
    handler.close_connection = True


@pytest.mark.parametrize("answer", [drip, wait], ids=["drip", "silence"])
def test_a_slow_server_is_given_up(tmp_path: Path, answer):
    started = time.monotonic()
    with serving({"/slow": answer}) as address, pytest.raises(UserError, match=r"too long|in time"):
        fetch(f"{address}/slow", tmp_path / "file", max_bytes=2000, timeout_seconds=0.5)
    assert time.monotonic() - started < 5
    assert list(tmp_path.iterdir()) == []


def noting(seen: list[str | None]):
    def answer(handler):
        seen.append(handler.headers.get("Authorization"))
        handler.reply(200, BODY)

    return answer


def test_a_token_goes_to_no_other_host(tmp_path: Path):
    seen: list[str | None] = []
    headers = {"Authorization": "Bearer secret"}
    with serving({"/file": noting(seen)}) as other:
        far, near = redirect(f"{other}/file"), redirect("/file")
        with serving({"/far": far, "/near": near, "/file": noting(seen)}) as address:
            for route in ("far", "near"):
                url = f"{address}/{route}"
                fetch(url, tmp_path / route, max_bytes=2000, headers=headers)
    assert seen == [None, "Bearer secret"]


def test_netrc_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[str | None] = []
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving({"/file": noting(seen)}) as address:
        fetch(f"{address}/file", tmp_path / "file", max_bytes=2000)
    assert seen == [None]


@pytest.mark.parametrize(
    ("url", "content"),
    [
        ("data:,hello", b"hello"),
        ("data:,a%20b%ff", b"a b\xff"),
        ("data:text/plain;base64,aGk=", b"hi"),
        ("DATA:;BASE64,aGk%3D", b"hi"),
        ("data:,%61%62%63%64%65", b"abcde"),
        ("data:;base64,%61%47%56%73%62%47%38%3D", b"hello"),
        ("data:application/x-tar;base64,", b""),
        ("data:,é", "é".encode()),
    ],
)
def test_data_urls_are_decoded(tmp_path: Path, url: str, content: bytes):
    fetch(url, tmp_path / "file", max_bytes=5)
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize(
    "url",
    [
        "data:text/plain",
        "data:;base64,a",
        "data:;base64,aGk= trailing",
        "data:;base64,é",
        "data:,\ud800",
        "data:,more than five",
        "data:,%61%62%63%64%65%66",
        "",
        "x",
        "//host/file",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://127.0.0.1/file",
        "gopher://127.0.0.1/file",
        "s3://bucket/file",
        "http://",
        "http:///file",
        "http://[::1/file",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:x/",
        "http://127.0.0.1\\@example.org/",
        "http://127.0.0.1\n/",
        "http://me:hunter2@127.0.0.1/",
        f"http://{'a' * 300}.invalid./",
        "http://a..b/",
        "http://*/",
        "http://\ud800/",
    ],
)
def test_other_addresses_are_refused(tmp_path: Path, url: str):
    with pytest.raises(UserError) as caught:
        fetch(url, tmp_path / "file", max_bytes=5, timeout_seconds=2)
    assert "hunter2" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://host /file", "expected no blanks, control characters or backslashes"),
        ("http://host/file\n", "expected no blanks, control characters or backslashes"),
        ("http://host\\file", "expected no blanks, control characters or backslashes"),
        ("http://*/", "not a valid URL"),
        (f"http://{'a' * 70}.invalid/", "not a valid URL|no connection"),
        ("http://\ud800/", "not a valid URL"),
        ("http:///file", "expected http.*HOST/PATH"),
        ("http://127.0.0.1:x/", "expected http.*HOST:PORT/PATH"),
        (f"http://host/{'a' * 8192}", "expected at most 8,192 characters, found 8,204"),
    ],
)
def test_what_is_expected_of_a_url_is_said(tmp_path: Path, url: str, found: str):
    with pytest.raises(UserError, match=found):
        fetch(url, tmp_path / "file", max_bytes=5, timeout_seconds=2)


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "X-GZIP"])
def test_an_archive_that_is_called_gzip_stays_as_it_is(tmp_path: Path, name: str):
    packed = gzip.compress(BODY)

    def answer(handler):
        handler.reply(200, packed, Content_Encoding=name)

    with serving({"/w.tar.gz": answer}) as address:
        fetch(f"{address}/w.tar.gz", tmp_path / "file", max_bytes=2000, is_archive=True)
        assert (tmp_path / "file").read_bytes() == packed
        with pytest.raises(UserError, match="found Content-Encoding"):
            fetch(f"{address}/w.tar.gz", tmp_path / "other", max_bytes=2000)


@pytest.mark.parametrize("proxy", ["http://", "http://[::1", "http://me:hunter2@[/"])
def test_a_proxy_that_is_none_is_named(tmp_path: Path, monkeypatch, proxy: str):
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(UserError, match=r"expected http_proxy.*http://HOST:PORT") as caught:
        fetch("http://host.invalid/", tmp_path / "file", max_bytes=5, timeout_seconds=2)
    assert "hunter2" not in str(caught.value)


def test_certificates_that_are_not_there_are_named(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none"))
    with serving({}) as address, pytest.raises(UserError, match="REQUESTS_CA_BUNDLE"):
        fetch(address.replace("http", "https"), tmp_path / "file", max_bytes=5, timeout_seconds=5)
