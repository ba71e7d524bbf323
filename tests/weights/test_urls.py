"""A stranger's URL never makes this machine send a packet to an address that is not public."""

import contextlib
import ctypes
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pycurl
import pytest

from src.errors import UserError
from src.weights.cache.cache import WeightsCache
from src.weights.download.deadline import Deadline, never
from src.weights.download.download import fetch
from src.weights.download.public_address import is_public
from src.weights.download.transfer import MAX_ADDRESSES, TransferError, post
from src.weights.download.url import in_ascii
from tests.weights.archives import make_tar
from tests.weights.cached import get
from tests.weights.http_server import cut_off, drip, serving

PUBLIC = "93.184.216.34"
NAMES: dict[str, list[str]] = {
    "public.example": [PUBLIC],
    "internal.example": ["10.0.0.5"],
    "metadata.internal.example": ["169.254.169.254"],
    "loopback.example": ["127.0.0.1"],
    "six.example": ["::1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "nat64.example": ["64:ff9b::a00:5"],
    "mixed.example": [PUBLIC, "127.0.0.1"],
    "mixed-six.example": [PUBLIC, "fd00::1"],
    "wildcard.example": ["0.0.0.0"],
    "carrier.example": ["100.64.0.1"],
}
PRIVATE_HOSTS = {
    "loopback": "127.0.0.1",
    "loopback-other": "127.8.9.10",
    "loopback-name": "localhost",
    "loopback-name-dot": "localhost.",
    "loopback-capitals": "LOCALHOST",
    "loopback-dot": "127.0.0.1.",
    "short": "127.1",
    "short-three": "127.0.1",
    "zero": "0",
    "zeros": "0.0.0.0",
    "decimal": "2130706433",
    "hexadecimal": "0x7f000001",
    "hexadecimal-parts": "0x7f.0x0.0x0.0x1",
    "octal": "0177.0.0.1",
    "octal-long": "00000177.0.0.01",
    "octal-whole": "017700000001",
    "mixed-bases": "0x7f.0.0.01",
    "percent": "%31%32%37.0.0.1",
    "circled": "①②⑦.⓪.⓪.①",
    "full-width": "１２７．０．０．１",
    "ideographic-dots": "127。0。0。1",
    "metadata": "169.254.169.254",
    "metadata-decimal": "2852039166",
    "metadata-hexadecimal": "0xa9fea9fe",
    "metadata-octal": "0251.0376.0251.0376",
    "metadata-aliyun": "100.100.100.200",
    "metadata-oracle": "192.0.0.192",
    "metadata-azure": "168.63.129.16",
    "metadata-six": "[fd00:ec2::254]",
    "private-ten": "10.0.0.1",
    "private-172": "172.16.0.1",
    "private-172-end": "172.31.255.254",
    "private-192": "192.168.1.1",
    "carrier": "100.64.0.1",
    "benchmark": "198.18.0.1",
    "documentation": "203.0.113.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "this-network": "0.1.2.3",
    "relay": "192.88.99.1",
    "six-loopback": "[::1]",
    "six-loopback-long": "[0:0:0:0:0:0:0:1]",
    "six-unspecified": "[::]",
    "six-mapped": "[::ffff:127.0.0.1]",
    "six-mapped-hexadecimal": "[::ffff:7f00:1]",
    "six-mapped-private": "[::ffff:10.0.0.1]",
    "six-mapped-metadata": "[::ffff:169.254.169.254]",
    "six-compatible": "[::127.0.0.1]",
    "six-translated": "[::ffff:0:127.0.0.1]",
    "six-nat64": "[64:ff9b::7f00:1]",
    "six-nat64-local": "[64:ff9b:1::7f00:1]",
    "six-to-four": "[2002:7f00:1::]",
    "six-teredo": "[2001:0:7f00:1::]",
    "six-link-local": "[fe80::1]",
    "six-unique-local": "[fd12:3456::1]",
    "six-site-local": "[fec0::1]",
    "six-multicast": "[ff02::1]",
    "six-documentation": "[2001:db8::1]",
    **{name: name for name, addresses in NAMES.items() if addresses != [PUBLIC]},
}
HOSTILE_URLS = {
    **{name: f"http://{host}/w.tar" for name, host in PRIVATE_HOSTS.items()},
    "port": "http://127.0.0.1:22/",
    "port-blank": "http://127.0.0.1:/",
    "port-zero": "http://public.example:0/",
    "port-beyond": "http://public.example:65536/",
    "port-negative": "http://public.example:-1/",
    "port-text": "http://public.example:http/",
    "https": "https://127.0.0.1/",
    "capitals": "HTTP://127.0.0.1/",
    "user": "http://public.example@127.0.0.1/",
    "user-password": "http://public.example:80@127.0.0.1/",
    "user-public": "http://me:hunter2@public.example/",
    "user-percent": "http://public.example%40127.0.0.1/",
    "backslash": "http://127.0.0.1\\@public.example/",
    "backslash-after": "http://public.example\\@127.0.0.1/",
    "hash": "http://127.0.0.1#@public.example/",
    "question": "http://127.0.0.1?@public.example/",
    "newline": "http://127.0.0.1\n.public.example/",
    "tab": "http://127.0.\t0.1/",
    "blank": " http://127.0.0.1/",
    "nul": "http://127.0.0.1\0.public.example/",
    "carriage-return": "http://public.example/\r\nHost: 127.0.0.1",
    "slashes-three": "http:///127.0.0.1/",
    "slashes-one": "http:/127.0.0.1/",
    "no-slashes": "http:127.0.0.1",
    "brackets": "http://[127.0.0.1]/",
    "bracket-open": "http://[::1/",
    "scope": "http://[fe80::1%25lo]/",
    "scope-loopback": "http://[::1%25lo]/",
    "host-empty": "http://",
    "host-dots": "http://.../",
    "host-surrogate": "http://\ud800/",
    "host-long": f"http://{'a' * 300}.example/",
    "file": "file:///etc/passwd",
    "file-host": "file://localhost/etc/passwd",
    "ftp": "ftp://127.0.0.1/x",
    "gopher": "gopher://127.0.0.1:6379/_FLUSHALL",
    "dict": "dict://127.0.0.1:11211/stats",
    "ldap": "ldap://127.0.0.1/",
    "s3": "s3://bucket/key",
    "gs": "gs://bucket/key",
    "unix": "http+unix://%2Fvar%2Frun%2Fdocker.sock/images",
    "jar": "jar:http://127.0.0.1!/x",
    "javascript": "javascript:alert(1)",
    "path": "/etc/passwd",
    "no-scheme": "//127.0.0.1/x",
    "environ": "/proc/self/environ",
}  # fmt: skip


OWN_CURL = pycurl.Curl


def watch(patch: pytest.MonkeyPatch, dialled: list[str], port: int | None) -> None:
    """Let libcurl know the names of the table, and note what it would dial.

    It is connected to a port of loopback instead, or to nothing.
    """

    class Watched(OWN_CURL):
        def setopt(self, option: int, value: object) -> None:
            if option != pycurl.OPENSOCKETFUNCTION:
                return super().setopt(option, value)

            def open_socket(purpose: int, address):
                assert callable(value)
                opened: Any = value(purpose, address)
                if opened == pycurl.SOCKET_BAD:
                    return opened
                dialled.append(address.addr[0])
                if port is None:
                    return pycurl.SOCKET_BAD
                opened.connect(("127.0.0.1", port))
                return opened

            super().setopt(option, open_socket)
            super().setopt(
                pycurl.RESOLVE,
                [
                    f"{name}:{port}:" + ",".join(f"[{a}]" if ":" in a else a for a in addresses)
                    for name, addresses in NAMES.items()
                    for port in (80, 443, 8443)
                ],
            )
            super().setopt(pycurl.SOCKOPTFUNCTION, lambda *_: pycurl.SOCKOPT_ALREADY_CONNECTED)

    patch.setattr(pycurl, "Curl", Watched)


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answer names from a table, connect to nothing, and note every address that would be."""
    seen: list[str] = []
    watch(monkeypatch, seen, None)
    monkeypatch.delenv("ALLOW_PRIVATE_URLS", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return seen


@pytest.mark.parametrize("name", HOSTILE_URLS)
def test_hostile_urls_are_refused_without_a_packet(tmp_path: Path, dialled: list[str], name: str):
    with pytest.raises(UserError) as caught:
        fetch(HOSTILE_URLS[name], tmp_path / "file", max_bytes=1000, timeout_seconds=5)
    # Of a name that leads to several addresses, the public one may be asked.
    assert set(dialled) <= ({PUBLIC} if "mixed" in name and "." in name else set())
    assert list(tmp_path.iterdir()) == []
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", PRIVATE_HOSTS)
def test_nothing_is_sent_to_a_private_address(dialled: list[str], name: str):
    with pytest.raises((UserError, TransferError)):
        post(
            in_ascii(f"http://{PRIVATE_HOSTS[name]}/"),
            b"secret",
            headers={},
            deadline=Deadline(5, never),
            any_address=False,
        )
    assert set(dialled) <= ({PUBLIC} if "mixed" in name and "." in name else set())


def test_the_forms_are_many():
    assert len(HOSTILE_URLS) >= 110


@pytest.mark.parametrize("name", PRIVATE_HOSTS)
def test_no_address_of_a_private_network_is_told(tmp_path: Path, dialled: list[str], name: str):
    host = PRIVATE_HOSTS[name]
    with pytest.raises(UserError) as caught:
        fetch(f"http://{host}/", tmp_path / "file", max_bytes=1000, timeout_seconds=5)
    for address in NAMES.get(host, []):
        assert address not in str(caught.value)


def test_a_public_address_is_dialled(tmp_path: Path, dialled: list[str]):
    """The control: the test would see a packet."""
    for url in (f"http://{PUBLIC}/", "http://public.example/", "https://public.example:8443/x"):
        with pytest.raises(UserError, match="no connection to the server"):
            fetch(url, tmp_path / "file", max_bytes=1000, timeout_seconds=5)
    assert dialled == [PUBLIC] * 3


def test_without_the_protection_private_addresses_are_dialled(
    tmp_path: Path, dialled: list[str], monkeypatch: pytest.MonkeyPatch
):
    """The other control, and the way for those who run their own network."""
    monkeypatch.setenv("ALLOW_PRIVATE_URLS", "1")
    for name in ("loopback", "loopback-name", "six-loopback", "metadata", "internal.example"):
        dialled.clear()
        with pytest.raises(UserError, match="no connection"):
            fetch(HOSTILE_URLS[name], tmp_path / "file", max_bytes=1000, timeout_seconds=5)
        assert dialled != [], name
        assert not any(map(is_public, dialled))


def test_the_address_that_is_checked_is_the_one_that_is_dialled(tmp_path: Path, monkeypatch):
    """A name server's second answer cannot come between: libcurl shows us what it dials."""
    checked: list[str] = []
    reached: list[str] = []

    def note(address: str) -> bool:
        checked.append(address)
        return True

    def answer(handler):
        reached.append(handler.connection.getsockname()[0])
        handler.reply(200, b"hello")

    monkeypatch.delenv("ALLOW_PRIVATE_URLS")
    monkeypatch.setattr("src.weights.download.transfer.is_public", note)
    with serving({"/w": answer}) as address:
        fetch(address.replace("127.0.0.1", "localhost") + "/w", tmp_path / "file", max_bytes=1000)
    assert reached == ["127.0.0.1"]
    assert len(checked) == len(set(checked))
    assert set(reached) <= set(checked) <= {"127.0.0.1", "::1"}


def test_only_the_containers_own_weights_may_come_from_a_private_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("ALLOW_PRIVATE_URLS")
    asked: list[str] = []

    def answer(handler):
        asked.append(handler.path)
        handler.reply(200, make_tar())

    with serving({"/own": answer, "/other": answer}) as address:
        cache = WeightsCache(
            tmp_path / "cache", max_archive_bytes=100_000, own_url=f"{address}/own"
        )
        with pytest.raises(UserError, match="expected a public address"):
            get(cache, f"{address}/other")
        assert get(cache, f"{address}/own").folder.is_dir()
    assert asked == ["/own"]


REDIRECTS = {
    **{name: f"http://{PRIVATE_HOSTS[name]}/" for name in (
        "loopback", "loopback-name", "decimal", "hexadecimal", "octal", "metadata", "six-loopback",
        "six-mapped", "private-ten", "internal.example", "mixed.example", "zero",
    )},
    "no-scheme": "//127.0.0.1/",
    "file": "file:///etc/passwd",
    "data": "data:,x",
    "gopher": "gopher://127.0.0.1/",
    "user": "http://public.example@127.0.0.1/",
}  # fmt: skip


@contextlib.contextmanager
def public_server(routes: dict, dialled: list[str]) -> Iterator[str]:
    """Serve at public.example, which leads to loopback in this test only."""
    with serving(routes) as address, pytest.MonkeyPatch.context() as patch:
        watch(patch, dialled, int(address.rpartition(":")[2]))
        yield "http://public.example"


@pytest.mark.parametrize("name", REDIRECTS)
def test_a_redirect_leads_to_no_private_address(tmp_path: Path, dialled: list[str], name: str):
    routes = {
        "/once": lambda handler: handler.reply(302, b"", Location=REDIRECTS[name]),
        "/twice": lambda handler: handler.reply(307, b"", Location="/once"),
    }
    with public_server(routes, dialled) as address:
        for route in ("once", "twice"):
            with pytest.raises(UserError):
                fetch(f"{address}/{route}", tmp_path / "file", max_bytes=1000, timeout_seconds=5)
    assert set(dialled) == {PUBLIC}
    assert list(tmp_path.iterdir()) == []


def test_a_redirect_to_a_public_address_is_followed(tmp_path: Path, dialled: list[str]):
    routes = {
        "/once": lambda handler: handler.reply(302, b"", Location="http://public.example/file"),
        "/file": b"hello",
    }
    with public_server(routes, dialled) as address:
        fetch(f"{address}/once", tmp_path / "file", max_bytes=1000, timeout_seconds=5)
    assert (tmp_path / "file").read_bytes() == b"hello"


def test_a_proxy_is_not_asked_for_private_addresses(
    tmp_path: Path, dialled: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("http_proxy", "http://10.9.9.9:3128")
    monkeypatch.setenv("https_proxy", "http://10.9.9.9:3128")
    for host in PRIVATE_HOSTS.values():
        with pytest.raises(UserError):
            fetch(f"http://{host}/", tmp_path / "file", max_bytes=1000, timeout_seconds=5)
    assert dialled == []
    with pytest.raises(UserError, match="no connection"):
        fetch("http://public.example/", tmp_path / "file", max_bytes=1000, timeout_seconds=5)
    assert dialled == ["10.9.9.9"]


def slow_headers(handler):
    """One byte of a header now and then, for ever."""
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.1)
    handler.close_connection = True


def endless_headers(handler):
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(1_000_000):
            handler.wfile.write(b"X-%d: x\r\n" % number)
    handler.close_connection = True


def endless_continues(handler):
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
    handler.close_connection = True


def endless_chunk_size(handler):
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;")
        for _ in range(10_000):
            handler.wfile.write(b"x" * 10_000)
    handler.close_connection = True


def endless_body(handler):
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(10_000):
            handler.wfile.write(b"x" * 10_000)
    handler.close_connection = True


def slow_trailers(handler):
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        handler.wfile.write(b"1\r\nx\r\n0\r\n")
        for number in range(100):
            handler.wfile.write(b"X-%d: x\r\n" % number)
            handler.wfile.flush()
            time.sleep(0.1)
    handler.close_connection = True


def endless_trailers(handler):
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        for number in range(10_000_000):
            handler.wfile.write(b"X-%d: x\r\n" % number)
    handler.close_connection = True


def silence(handler):
    time.sleep(3)
    handler.close_connection = True


SLOW_OR_ENDLESS = (
    drip, slow_headers, endless_headers, endless_continues, endless_chunk_size, endless_body,
    slow_trailers, endless_trailers, silence,
)  # fmt: skip


@pytest.mark.parametrize("answer", SLOW_OR_ENDLESS, ids=lambda answer: answer.__name__)
def test_no_server_takes_more_than_the_time_or_the_bytes(tmp_path: Path, answer):
    sizes: list[int] = []
    stop = threading.Event()

    def watch_folder() -> None:
        while not stop.wait(0.01):
            with contextlib.suppress(OSError):
                sizes.extend(path.stat().st_size for path in tmp_path.iterdir())

    watcher = threading.Thread(target=watch_folder)
    watcher.start()
    started = time.monotonic()
    with serving({"/w": answer}) as address, pytest.raises(UserError) as caught:
        fetch(f"{address}/w?sig=SECRET", tmp_path / "file", max_bytes=2000, timeout_seconds=0.7)
    seconds = time.monotonic() - started
    stop.set()
    watcher.join()
    assert seconds < 3
    assert max(sizes, default=0) <= 2000 + 2**20
    assert "SECRET" not in str(caught.value)
    assert str(caught.value).startswith("could not download ")
    assert list(tmp_path.iterdir()) == []


FETCH = """
import sys, time
from pathlib import Path
from typing import Any
from src.errors import UserError
from src.weights.download.download import fetch
started = time.monotonic()
try:
    fetch("http://slow.example/", Path(sys.argv[1]), max_bytes=1000, timeout_seconds=1)
except UserError as error:
    print(error, time.monotonic() - started, sep="\\n")
"""


@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:9"])
def test_a_silent_name_server_is_given_up(tmp_path: Path, proxy: str):
    """The system's own resolver asks it, in a process that sees another /etc/resolv.conf."""
    place = f"127.0.0.{78 if proxy else 77}"
    try:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind((place, 53))
    except PermissionError:
        pytest.skip("needs the right to serve names")
    resolver = tmp_path / "resolv.conf"
    resolver.write_text(f"nameserver {place}\n")
    mount = f"mount --bind {resolver} /etc/resolv.conf"
    command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a file")
    environ = {**os.environ, "http_proxy": proxy}
    environ.pop("ALLOW_PRIVATE_URLS")
    with server:
        done = subprocess.run(
            [*command, sys.executable, "-c", FETCH, str(tmp_path / "file")],
            capture_output=True, text=True, timeout=60, env=environ,
        )  # fmt: skip
        assert server.recv(512)
    sentence, seconds = done.stdout.splitlines()
    assert re.fullmatch(
        r"could not download http://slow\.example/: (it took too long|.* in time)", sentence
    )
    assert float(seconds) < 5
    assert list(tmp_path.iterdir()) == [resolver]


def test_only_so_many_addresses_of_a_name_are_tried(
    tmp_path: Path, dialled: list[str], monkeypatch
):
    monkeypatch.setitem(NAMES, "many.example", [f"93.184.216.{n}" for n in range(200)])
    with pytest.raises(UserError, match="no connection to the server"):
        fetch("http://many.example/", tmp_path / "file", max_bytes=1000, timeout_seconds=5)
    assert len(dialled) == MAX_ADDRESSES


def test_many_addresses_share_one_time(tmp_path: Path, monkeypatch):
    """A name may lead to hundreds of addresses, each of them as silent as the last."""
    addresses = ",".join(f"127.0.0.{n}" for n in range(2, 202))
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):  # one that has no more room answers to nobody
            full = stack.enter_context(socket.socket())
            full.setblocking(False)
            full.connect_ex(("127.0.0.1", port))

        class Named(OWN_CURL):
            def __init__(self) -> None:
                self.setopt(pycurl.RESOLVE, [f"many.example:{port}:{addresses}"])

        monkeypatch.setattr(pycurl, "Curl", Named)
        started = time.monotonic()
        with pytest.raises(UserError, match="it took too long"):
            fetch(f"http://many.example:{port}/", tmp_path / "file", max_bytes=9, timeout_seconds=1)
        assert time.monotonic() - started < 5


def test_a_slow_handshake_is_given_up(tmp_path: Path):
    """Bytes of a greeting now and then, where encryption was asked for."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def greet() -> None:
            peer, _ = listener.accept()
            with contextlib.suppress(OSError), peer:
                peer.sendall(b"\x16\x03\x03\x40\x00")
                for _ in range(50):
                    peer.sendall(b"\x02")
                    time.sleep(0.1)

        threading.Thread(target=greet, daemon=True).start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        started = time.monotonic()
        with pytest.raises(UserError, match="it took too long"):
            fetch(url, tmp_path / "file", max_bytes=2000, timeout_seconds=0.7)
    assert time.monotonic() - started < 3


def test_no_thread_and_no_socket_is_left(tmp_path: Path):
    def num_open() -> tuple[int, int]:
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    with serving({"/file": b"hello", "/cut": cut_off}) as address:
        fetch(f"{address}/file", tmp_path / "file", max_bytes=2000)
        time.sleep(0.2)
        before = num_open()
        for _ in range(20):
            fetch(f"{address}/file", tmp_path / "file", max_bytes=2000)
            with pytest.raises(UserError):
                fetch(f"{address}/cut", tmp_path / "cut", max_bytes=2000)
        time.sleep(0.5)
        after = num_open()
    assert after[0] <= before[0] + 1
    assert after[1] <= before[1] + 2


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Serve `hello` by https on loopback; yields the port and the certificate."""
    folder = tmp_path_factory.mktemp("https")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-keyout key.pem -out certificate.pem -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    with serving({"/file": b"hello"}, context) as address:
        yield int(address.rpartition(":")[2]), folder / "certificate.pem"


@pytest.mark.parametrize("has_proxy", [False, True])
def test_https_wants_a_certificate_that_is_trusted(
    tmp_path: Path, encrypted: tuple[int, Path], monkeypatch, has_proxy: bool
):
    port, certificate = encrypted
    url = f"https://localhost:{port}/file"
    asked: list[str] = []

    def tunnel(handler):
        """Connect to the server that was asked for, as a proxy does."""
        asked.append(handler.path)
        with socket.create_connection(("127.0.0.1", port)) as far:
            handler.wfile.write(b"HTTP/1.1 200 Connection established\r\nX-Proxy: yes\r\n\r\n")
            pumps = [
                threading.Thread(target=pump, args=ends)
                for ends in ((handler.connection, far), (far, handler.connection))
            ]
            for thread in pumps:
                thread.start()
            for thread in pumps:
                thread.join()
        handler.close_connection = True

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(4096):
                target.sendall(block)
            target.shutdown(socket.SHUT_WR)

    with serving({f"localhost:{port}": tunnel}) as proxy:
        if has_proxy:
            monkeypatch.setenv("https_proxy", proxy)
            monkeypatch.setenv("no_proxy", "")
        with pytest.raises(UserError, match="no secure connection"):
            fetch(url, tmp_path / "file", max_bytes=1000, timeout_seconds=20)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        fetch(url, tmp_path / "file", max_bytes=1000, timeout_seconds=20)
    assert (tmp_path / "file").read_bytes() == b"hello"
    assert asked == [f"localhost:{port}"] * (2 if has_proxy else 0)


class Canceled(BaseException):
    """What Cog throws into the thread of a request that is canceled."""


def test_an_exception_that_is_thrown_into_the_thread_ends_the_download(tmp_path: Path):
    outcome: list[BaseException] = []
    has_begun = threading.Event()

    def answer(handler):
        has_begun.set()
        endless_body(handler)

    def ask(url: str) -> None:
        try:
            fetch(url, tmp_path / "file", max_bytes=10**12)
        except BaseException as error:
            outcome.append(error)

    with serving({"/w": answer}) as address:
        asking = threading.Thread(target=ask, args=(f"{address}/w",))
        asking.start()
        assert has_begun.wait(20)
        thrown = ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(asking.ident or 0), ctypes.py_object(Canceled)
        )
        asking.join(20)
    assert thrown == 1
    assert [type(error) for error in outcome] == [Canceled]
    assert list(tmp_path.iterdir()) == []
