"""Weights are unpacked once, known by their content, and taken from where they may be."""

import contextlib
import gzip
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from src.errors import UserError
from src.weights.cache.cache import Weights, WeightsCache
from tests.weights.archives import FILES, HOSTILE, make_tar
from tests.weights.cached import get
from tests.weights.http_server import cut_off, drip, serving


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A WEIGHTS_DIR with good weights as file and folder, and good weights outside of it."""
    root = tmp_path / "root"
    for folder in (root / "folder", tmp_path / "outside"):
        folder.mkdir(parents=True)
        for name, data in FILES.items():
            (folder / name).write_bytes(data)
    (root / "good.tar").write_bytes(make_tar())
    (tmp_path / "outside.tar").write_bytes(make_tar())
    return root


@pytest.fixture
def cache(tmp_path: Path) -> WeightsCache:
    return WeightsCache(tmp_path / "cache", max_archive_bytes=100_000)


def kept(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "0").iterdir())


@pytest.mark.parametrize("source", ["good.tar", "folder", "./good.tar", "folder/../good.tar"])
def test_weights_below_the_root_are_taken(root: Path, cache: WeightsCache, source: str):
    for name in (source, str(root / source)):
        weights = get(cache, name, local_root=root)
        assert {p.name: p.read_bytes() for p in weights.folder.iterdir()} == FILES


def test_the_same_content_is_one_folder(tmp_path: Path, root: Path, cache: WeightsCache):
    with serving({"/a": make_tar(), "/b": make_tar()}) as address:
        found = [get(cache, source) for source in (
            str(root / "good.tar"), str(tmp_path / "outside.tar"), f"{address}/a", f"{address}/b",
        )]  # fmt: skip
    assert found == [found[0]] * 4
    assert found[0].key == hashlib.sha256(make_tar()).hexdigest()
    assert kept(tmp_path) == [found[0].key]
    assert get(cache, f"{address}/a") == found[0]  # the server is gone
    (root / "good.tar").write_bytes(gzip.compress(make_tar()))
    assert get(cache, str(root / "good.tar")) != found[0]
    assert len(kept(tmp_path)) == 2


def test_a_folder_is_copied_as_it_is_now(tmp_path: Path, root: Path, cache: WeightsCache):
    (root / "folder" / "optimizer.pt").write_text("left out")
    first = get(cache, "folder", local_root=root)
    (root / "folder" / "training.json").write_text("new")
    second = get(cache, "folder", local_root=root)
    assert first.key != second.key
    assert (first.folder / "training.json").read_bytes() == FILES["training.json"]
    assert (second.folder / "training.json").read_text() == "new"
    assert {p.name for p in second.folder.iterdir()} == FILES.keys()


def test_a_folder_without_weights_is_refused(tmp_path: Path, root: Path, cache: WeightsCache):
    for source in ("", "."):
        with pytest.raises(
            UserError, match=r"'root': adapter_model.safetensors is missing; it lies in 'folder'"
        ):
            get(cache, source, local_root=root)
    (root / "folder" / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"adapter_config\.json is missing"):
        get(cache, "folder", local_root=root)
    assert kept(tmp_path) == []


OUTSIDE = {
    "up": "../outside.tar",
    "up-folder": "../outside",
    "up-deep": "folder/../../outside.tar",
    "root-up": "..",
    "absolute": "{tmp}/outside.tar",
    "system": "/etc/passwd",
    "neighbour": "../root-2/x.tar",
    "link": "link.tar",
    "link-folder": "link",
    "through-link": "up/outside.tar",
    "folder-of-links": "links",
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_weights_outside_of_the_root_are_refused(
    tmp_path: Path, root: Path, cache: WeightsCache, name: str
):
    (root / "link.tar").symlink_to(tmp_path / "outside.tar")
    (root / "link").symlink_to("../outside")
    (root / "up").symlink_to("..")
    (root / "links").mkdir()
    for file in FILES:
        (root / "links" / file).symlink_to(tmp_path / "outside" / file)
    with pytest.raises(UserError, match="lies outside of WEIGHTS_DIR"):
        get(cache, OUTSIDE[name].format(tmp=tmp_path), local_root=root)
    assert kept(tmp_path) == []


def test_links_that_stay_below_the_root_are_followed(root: Path, cache: WeightsCache):
    (root / "link.tar").symlink_to("good.tar")
    (root / "links").mkdir()
    for file in FILES:
        (root / "links" / file).symlink_to(root / "folder" / file)
    assert get(cache, "link.tar", local_root=root) == get(cache, "good.tar", local_root=root)
    assert get(cache, "links", local_root=root) == get(cache, "folder", local_root=root)


@pytest.mark.parametrize(
    "source", ["none", "loop", "pipe", "x" * 5000, "a\0b", "\ud800", "good.tar/x"]
)
def test_what_is_not_there_is_named(tmp_path: Path, root: Path, cache: WeightsCache, source: str):
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    for name, local_root in ((source, root), (f"{root}/{source}", None)):
        with pytest.raises(UserError, match="weights: ") as caught:
            get(cache, name, local_root=local_root)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300
    assert kept(tmp_path) == []


@pytest.mark.parametrize("name", ["html", "traversal", "no-config", "cut-data", "zip"])
def test_bad_weights_leave_nothing(tmp_path: Path, cache: WeightsCache, name: str):
    (tmp_path / "bad").write_bytes(HOSTILE[name])
    with serving({"/bad": HOSTILE[name], "/cut": cut_off}) as address:
        for source in (str(tmp_path / "bad"), f"{address}/bad", f"{address}/cut", f"{address}/no"):
            with pytest.raises(UserError):
                get(cache, source)
            assert kept(tmp_path) == []


def test_a_bad_download_is_tried_again(cache: WeightsCache):
    routes = {"/weights": cut_off}
    with serving(routes) as address:
        with pytest.raises(UserError):
            get(cache, f"{address}/weights")
        routes["/weights"] = make_tar()
        assert get(cache, f"{address}/weights").folder.is_dir()


def test_weights_can_come_in_a_data_url(cache: WeightsCache, root: Path):
    from base64 import b64encode

    url = f"data:application/x-tar;base64,{b64encode(make_tar()).decode()}"
    assert get(cache, url, local_root=root) == get(cache, "good.tar", local_root=root)


def numbered(number: int) -> bytes:
    return make_tar(files={**FILES, "training.json": b"%03d" % number + b" " * 1000})


def test_the_least_recently_used_weights_make_room(tmp_path: Path):
    cache = WeightsCache(tmp_path / "cache", max_archive_bytes=100_000, max_bytes=3500)
    keys = []
    for number in range(4):
        (tmp_path / f"{number}.tar").write_bytes(numbered(number))
        keys.append(get(cache, str(tmp_path / f"{number}.tar")).key)
    assert kept(tmp_path) == sorted(keys[1:])
    assert get(cache, str(tmp_path / "1.tar")).key == keys[1]  # used: now 2 is the oldest
    get(cache, str(tmp_path / "0.tar"))
    assert kept(tmp_path) == sorted([keys[0], keys[1], keys[3]])


def test_evicted_weights_are_fetched_again(tmp_path: Path):
    cache = WeightsCache(tmp_path / "cache", max_archive_bytes=100_000, max_bytes=1)
    with serving({f"/{number}": numbered(number) for number in range(2)}) as address:
        for _ in range(2):
            for number in range(2):
                folder = get(cache, f"{address}/{number}").folder
                assert (folder / "training.json").read_bytes().startswith(b"%03d" % number)
                assert kept(tmp_path) == [folder.name]


def test_so_many_urls_are_remembered_and_none_is_kept(cache: WeightsCache, monkeypatch):
    monkeypatch.setattr("src.weights.cache.cache.MAX_KNOWN", 2)
    asked: list[str] = []

    def answer(handler):
        asked.append(handler.path[-1])
        handler.reply(200, make_tar())

    with serving({"/w": answer}) as address:
        for number in (0, 1, 0, 2, 0, 1):
            get(cache, f"{address}/w?sig={number}")
    assert asked == ["0", "1", "2", "1"]  # the least recently used one goes first
    assert "sig" not in repr(vars(cache))


def test_threads_share_one_folder(tmp_path: Path, root: Path, cache: WeightsCache):
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: get(cache, "good.tar", local_root=root), range(32)))
    assert len(found) == 1
    assert kept(tmp_path) == [found.pop().key]


ONE_PROCESS = """
import sys
from pathlib import Path
from src.weights.cache.cache import WeightsCache
cache = WeightsCache(Path(sys.argv[1]), max_archive_bytes=100_000)
for source in sys.argv[2:]:
    with cache.hold(source) as weights:
        print(weights.folder, flush=True)
if len(sys.argv) > 3:
    sys.stdin.read()
"""


def in_a_process(*arguments: object) -> subprocess.Popen[str]:
    """Hold weights of a cache in a process, which then waits if there are several."""
    return subprocess.Popen(
        [sys.executable, "-c", ONE_PROCESS, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_new_process_finds_what_is_kept(tmp_path: Path, root: Path):
    first, _ = in_a_process(tmp_path / "cache", root / "good.tar").communicate(timeout=60)
    again = WeightsCache(tmp_path / "cache", max_archive_bytes=100_000)
    assert kept(tmp_path) == [Path(first.strip()).name]
    assert str(get(again, str(root / "good.tar")).folder) == first.strip()
    assert (again.use().hits, again.use().misses, again.use().entries) == (1, 0, 1)


def test_a_killed_download_is_gone_with_the_next_server(tmp_path: Path):
    asked = threading.Event()

    def answer(handler):
        asked.set()
        drip(handler)

    with serving({"/w": answer}) as address:
        process = in_a_process(tmp_path / "cache", f"{address}/w")
        assert asked.wait(60)
        process.kill()
        process.communicate()
    assert len(kept(tmp_path)) == 1
    WeightsCache(tmp_path / "cache", max_archive_bytes=100_000)
    assert kept(tmp_path) == []


def test_two_servers_do_not_evict_what_the_other_uses(tmp_path: Path, root: Path):
    other = in_a_process(tmp_path / "cache", root / "good.tar", root / "folder")
    assert other.stdout is not None
    folders = [Path(other.stdout.readline().strip()) for _ in range(2)]
    cache = WeightsCache(tmp_path / "cache", max_archive_bytes=100_000, max_bytes=1)
    for source in ("good.tar", "folder", "good.tar"):
        assert get(cache, str(root / source)).folder not in folders
    assert all((folder / "adapter_config.json").is_file() for folder in folders)
    other.communicate(timeout=60)


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, root: Path):
    """What they plant under an archive's own hash would be served unchecked."""
    key = hashlib.sha256(make_tar()).hexdigest()
    planted = tmp_path / "shared" / "0" / key
    planted.mkdir(parents=True)
    (planted / "adapter_config.json").write_text("planted")
    (tmp_path / "shared").chmod(0o777)
    with pytest.raises(UserError, match=r"WEIGHTS_CACHE: expected a folder .* mode 777"):
        WeightsCache(tmp_path / "shared", max_archive_bytes=100_000)
    WeightsCache(tmp_path / "new" / "own", max_archive_bytes=100_000)
    assert (tmp_path / "new" / "own").stat().st_mode & 0o777 == 0o700


def cut_off_and_refuse(cache: WeightsCache, source: str) -> None:
    with cache.hold(source) as weights:
        os.truncate(weights.folder / "adapter_model.safetensors", 1)
        raise UserError("it is cut off")


@pytest.mark.parametrize("source", ["good.tar", "folder", "{address}/w"])
def test_what_was_refused_is_unpacked_again(root: Path, cache: WeightsCache, source: str):
    """A file that was cut off on disk must not be refused for ever."""
    with serving({"/w": make_tar()}) as address:
        source = source.format(address=address)
        source = source if "://" in source else str(root / source)
        with cache.hold(source) as others:
            with pytest.raises(UserError, match="cut off"):
                cut_off_and_refuse(cache, source)
            assert others.folder.is_dir()  # for as long as somebody uses it
        assert not others.folder.exists()
        assert cache.use().entries == cache.use().bytes == 0
        with cache.hold(source) as weights:
            assert {p.name: p.read_bytes() for p in weights.folder.iterdir()} == FILES


def test_a_file_is_read_once_until_it_changes(root: Path, cache: WeightsCache, monkeypatch):
    read: list[object] = []
    own_digest = hashlib.file_digest

    def file_digest(file, name: str):
        read.append(file.name)
        return own_digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    path = root / "good.tar"
    first = get(cache, str(path))
    get(cache, str(path))
    assert len(read) == 2  # it may change again within a tick of the clock
    os.utime(path, (1, 1))
    for _ in range(3):
        assert get(cache, str(path)) == first
    assert len(read) == 3
    path.write_bytes(gzip.compress(make_tar()))
    assert get(cache, str(path)) != first


def test_the_bytes_are_counted_as_they_come_and_go(tmp_path: Path):
    cache = WeightsCache(tmp_path / "cache", max_archive_bytes=100_000, max_bytes=3500)
    for number in (0, 1, 0, 2, 3, 0):
        (tmp_path / "a.tar").write_bytes(numbered(number))
        get(cache, str(tmp_path / "a.tar"))
        files = [path for path in (tmp_path / "cache" / "0").rglob("*") if path.is_file()]
        assert cache.use().bytes == sum(path.stat().st_size for path in files) <= 3500
        assert cache.use().entries == len({path.parent for path in files})


class Asker:
    """Somebody who waits for weights in a thread, and may lose interest."""

    def __init__(self, cache: WeightsCache, url: str) -> None:
        self.is_interested = True
        self.outcome: object = None
        self._thread = threading.Thread(target=self._ask, args=(cache, url))
        self._thread.start()

    def _ask(self, cache: WeightsCache, url: str) -> None:
        try:
            with cache.hold(url, is_canceled=lambda: not self.is_interested) as weights:
                self.outcome = weights
        except UserError as error:
            self.outcome = str(error)

    def wait(self) -> object:
        self._thread.join(20)
        return self.outcome


def test_a_download_goes_on_for_as_long_as_somebody_wants_it(tmp_path: Path, cache: WeightsCache):
    asked: list[str] = []
    may_end = threading.Event()

    def slow(handler):
        asked.append(handler.path)
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        may_end.wait(20)
        with contextlib.suppress(OSError):
            handler.wfile.write(make_tar())
        handler.close_connection = True

    with serving({"/w": slow}) as address:
        askers = [Asker(cache, f"{address}/w") for _ in range(3)]
        while not asked:
            time.sleep(0.01)
        for asker in askers[:2]:  # one of them waits for the other, or for the third
            asker.is_interested = False
        time.sleep(0.5)
        may_end.set()
        weights = askers[2].wait()
        assert isinstance(weights, Weights)
        assert len(asked) == 1
        may_end.clear()
        alone = Asker(cache, f"{address}/w?again")
        while len(asked) < 2:
            time.sleep(0.01)
        alone.is_interested = False
        assert re.search("nobody waits for it any more", str(alone.wait()))
        may_end.set()
    assert kept(tmp_path) == [weights.key]
