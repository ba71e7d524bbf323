"""A stranger's URL never makes this machine send a packet to an address that is not public."""

import contextlib
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.errors import UserError
from src.weights.cache.cache import WeightsCache
from src.weights.download.download import fetch
from src.weights.download.public_address import MAX_ADDRESSES, connect_public, is_public
from tests.weights.archives import make_tar
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


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answer names from a table, connect to nothing, and note every address that would be."""
    own_getaddrinfo = socket.getaddrinfo
    seen: list[str] = []

    def getaddrinfo(host, port, *args, **values):
        if host in NAMES:
            return [found for address in NAMES[host]
                    for found in own_getaddrinfo(address, port, *args, **values)]  # fmt: skip
        return (
            own_getaddrinfo(host, port, *args, flags=socket.AI_NUMERICHOST, **values)
            if (str(host).lower().strip(".") != "localhost")
            else own_getaddrinfo(host, port, *args, **values)
        )

    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            seen.append(address[0])
        raise ConnectionRefusedError("no connections in this test")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket.socket, "connect_ex", connect)
    monkeypatch.setattr(socket.socket, "sendto", connect)
    monkeypatch.delenv("ALLOW_PRIVATE_URLS", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return seen


@pytest.mark.parametrize("name", HOSTILE_URLS)
def test_hostile_urls_are_refused_without_a_packet(tmp_path: Path, dialled: list[str], name: str):
    with pytest.raises(UserError) as caught:
        fetch(HOSTILE_URLS[name], tmp_path / "file", max_bytes=1000, timeout_seconds=5)
    assert dialled == []
    assert list(tmp_path.iterdir()) == []
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert "hunter2" not in str(caught.value)


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


def test_a_name_is_resolved_once(tmp_path: Path, dialled: list[str], monkeypatch):
    """A second answer, given after the check, is never asked for."""
    answers = [[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]]
    num_asked = 0

    def getaddrinfo(host, port, *args, **values):
        nonlocal num_asked
        num_asked += 1
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, (address, port)) for address in answers[num_asked - 1]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(UserError):
        fetch("http://rebind.example/", tmp_path / "file", max_bytes=1000, timeout_seconds=5)
    assert (num_asked, dialled) == (1, [PUBLIC])


def test_only_the_containers_own_weights_may_come_from_a_private_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("ALLOW_PRIVATE_URLS")
    cache = WeightsCache(tmp_path / "cache", max_archive_bytes=100_000)
    asked: list[str] = []

    def answer(handler):
        asked.append(handler.path)
        handler.reply(200, make_tar())

    with serving({"/own": answer, "/other": answer}) as address:
        monkeypatch.setenv("COG_WEIGHTS", f"{address}/own")
        with pytest.raises(UserError, match="expected a public address"):
            cache.get(f"{address}/other")
        assert cache.get(f"{address}/own").folder.is_dir()
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


OWN_CONNECT = socket.socket.connect


@contextlib.contextmanager
def public_server(routes: dict, dialled: list[str]) -> Iterator[str]:
    """Serve at public.example, which leads to loopback in this test only."""
    with serving(routes) as address, pytest.MonkeyPatch.context() as patch:
        port = int(address.rpartition(":")[2])

        def connect(self, target):
            dialled.append(target[0])
            if target[0] != PUBLIC:
                raise ConnectionRefusedError
            return OWN_CONNECT(self, ("127.0.0.1", port))

        patch.setattr(socket.socket, "connect", connect)
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


def silence(handler):
    time.sleep(3)
    handler.close_connection = True


SLOW_OR_ENDLESS = (
    drip, slow_headers, endless_headers, endless_continues, endless_chunk_size, endless_body,
    slow_trailers, silence,
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


@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:9"])
def test_a_slow_name_server_is_given_up(tmp_path: Path, monkeypatch, proxy: str):
    monkeypatch.delenv("ALLOW_PRIVATE_URLS")
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setattr("src.weights.download.guarded_session.LOOK_UP_SECONDS", 1.0)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(20))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"^could not download http://slow\.example/: ") as error:
        fetch("http://slow.example/", tmp_path / "file", max_bytes=1000, timeout_seconds=1)
    assert time.monotonic() - started < 3
    assert re.search("it took too long|did not answer in time", str(error.value))
    assert list(tmp_path.iterdir()) == []


LOOK_UP = """
import time
from src.weights.download.name_lookup import look_up
started = time.monotonic()
try:
    look_up("slow.example", 80, seconds=1)
except TimeoutError:
    print("%.1f" % (time.monotonic() - started))
"""


def test_a_name_server_that_is_silent_is_given_up(tmp_path: Path):
    """The system's own resolver asks it, in a process that sees another /etc/resolv.conf."""
    try:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.77", 53))
    except PermissionError:
        pytest.skip("needs the right to serve names")
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.77\n")
    mount = f"mount --bind {resolver} /etc/resolv.conf"
    command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a file")
    with server:
        done = subprocess.run(
            [*command, sys.executable, "-c", LOOK_UP], capture_output=True, text=True, timeout=60
        )
        assert server.recv(512)
    assert 0.9 < float(done.stdout) < 3, done.stderr


@pytest.mark.parametrize("is_silent", [True, False])
def test_many_addresses_share_one_time(dialled: list[str], monkeypatch, is_silent: bool):
    """A name may lead to hundreds of addresses, each of them as silent as the last."""
    monkeypatch.setitem(NAMES, "many.example", [f"93.184.216.{n}" for n in range(200)])
    refuse = socket.socket.connect

    def wait(self, address):
        time.sleep(self.gettimeout())
        with contextlib.suppress(ConnectionRefusedError):
            refuse(self, address)
        raise TimeoutError

    if is_silent:
        monkeypatch.setattr(socket.socket, "connect", wait)
    started = time.monotonic()
    with pytest.raises(TimeoutError if is_silent else ConnectionRefusedError):
        connect_public("many.example", 80, 0.5 if is_silent else None)
    assert time.monotonic() - started < 1
    assert len(dialled) == MAX_ADDRESSES


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
