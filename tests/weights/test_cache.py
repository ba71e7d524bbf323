"""Weights are unpacked once, known by their content, and taken from where they may be."""

import contextlib
import gzip
import hashlib
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from src.errors import UserError
from src.weights.cache.cache import Weights, WeightsCache
from tests.weights.archives import FILES, HOSTILE, make_tar
from tests.weights.http_server import cut_off, serving


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
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


@pytest.mark.parametrize("source", ["good.tar", "folder", "./good.tar", "folder/../good.tar"])
def test_weights_below_the_root_are_taken(root: Path, cache: WeightsCache, source: str):
    for name in (source, str(root / source)):
        weights = cache.get(name, local_root=root)
        assert {p.name: p.read_bytes() for p in weights.folder.iterdir()} == FILES


def test_the_same_content_is_one_folder(tmp_path: Path, root: Path, cache: WeightsCache):
    with serving({"/a": make_tar(), "/b": make_tar()}) as address:
        found = [cache.get(source) for source in (
            str(root / "good.tar"), str(tmp_path / "outside.tar"), f"{address}/a", f"{address}/b",
        )]  # fmt: skip
    assert found == [found[0]] * 4
    assert found[0].key == hashlib.sha256(make_tar()).hexdigest()
    assert kept(tmp_path) == [found[0].key]
    assert cache.get(f"{address}/a") == found[0]  # the server is gone
    (root / "good.tar").write_bytes(gzip.compress(make_tar()))
    assert cache.get(str(root / "good.tar")) != found[0]
    assert len(kept(tmp_path)) == 2


def test_a_folder_is_copied_as_it_is_now(tmp_path: Path, root: Path, cache: WeightsCache):
    (root / "folder" / "optimizer.pt").write_text("left out")
    first = cache.get("folder", local_root=root)
    (root / "folder" / "training.json").write_text("new")
    second = cache.get("folder", local_root=root)
    assert first.key != second.key
    assert (first.folder / "training.json").read_bytes() == FILES["training.json"]
    assert (second.folder / "training.json").read_text() == "new"
    assert {p.name for p in second.folder.iterdir()} == FILES.keys()


def test_a_folder_without_weights_is_refused(tmp_path: Path, root: Path, cache: WeightsCache):
    for source in ("", "."):
        with pytest.raises(UserError, match="is missing in the folder 'root'"):
            cache.get(source, local_root=root)
    (root / "folder" / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"adapter_config\.json is missing"):
        cache.get("folder", local_root=root)
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
        cache.get(OUTSIDE[name].format(tmp=tmp_path), local_root=root)
    assert kept(tmp_path) == []


def test_links_that_stay_below_the_root_are_followed(root: Path, cache: WeightsCache):
    (root / "link.tar").symlink_to("good.tar")
    (root / "links").mkdir()
    for file in FILES:
        (root / "links" / file).symlink_to(root / "folder" / file)
    assert cache.get("link.tar", local_root=root) == cache.get("good.tar", local_root=root)
    assert cache.get("links", local_root=root) == cache.get("folder", local_root=root)


@pytest.mark.parametrize(
    "source", ["none", "loop", "pipe", "x" * 5000, "a\0b", "\ud800", "good.tar/x"]
)
def test_what_is_not_there_is_named(tmp_path: Path, root: Path, cache: WeightsCache, source: str):
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    for name, local_root in ((source, root), (f"{root}/{source}", None)):
        with pytest.raises(UserError, match="weights: ") as caught:
            cache.get(name, local_root=local_root)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300
    assert kept(tmp_path) == []


@pytest.mark.parametrize("name", ["html", "traversal", "no-config", "cut-data", "zip"])
def test_bad_weights_leave_nothing(tmp_path: Path, cache: WeightsCache, name: str):
    (tmp_path / "bad").write_bytes(HOSTILE[name])
    with serving({"/bad": HOSTILE[name], "/cut": cut_off}) as address:
        for source in (str(tmp_path / "bad"), f"{address}/bad", f"{address}/cut", f"{address}/no"):
            with pytest.raises(UserError):
                cache.get(source)
            assert kept(tmp_path) == []


def test_a_bad_download_is_tried_again(cache: WeightsCache):
    routes = {"/weights": cut_off}
    with serving(routes) as address:
        with pytest.raises(UserError):
            cache.get(f"{address}/weights")
        routes["/weights"] = make_tar()
        assert cache.get(f"{address}/weights").folder.is_dir()


def test_weights_can_come_in_a_data_url(cache: WeightsCache, root: Path):
    from base64 import b64encode

    url = f"data:application/x-tar;base64,{b64encode(make_tar()).decode()}"
    assert cache.get(url, local_root=root) == cache.get("good.tar", local_root=root)


def numbered(number: int) -> bytes:
    return make_tar(files={**FILES, "training.json": b"%03d" % number + b" " * 1000})


def test_the_least_recently_used_weights_make_room(tmp_path: Path):
    cache = WeightsCache(tmp_path / "cache", max_archive_bytes=100_000, max_bytes=3500)
    keys = []
    for number in range(4):
        (tmp_path / f"{number}.tar").write_bytes(numbered(number))
        keys.append(cache.get(str(tmp_path / f"{number}.tar")).key)
        os.utime(tmp_path / "cache" / keys[-1], (number + 1, number + 1))
    assert kept(tmp_path) == sorted(keys[1:])
    assert cache.get(str(tmp_path / "1.tar")).key == keys[1]  # used: now 2 is the oldest
    cache.get(str(tmp_path / "0.tar"))
    assert kept(tmp_path) == sorted([keys[0], keys[1], keys[3]])


def test_evicted_weights_are_fetched_again(tmp_path: Path):
    cache = WeightsCache(tmp_path / "cache", max_archive_bytes=100_000, max_bytes=1)
    with serving({f"/{number}": numbered(number) for number in range(2)}) as address:
        for _ in range(2):
            for number in range(2):
                folder = cache.get(f"{address}/{number}").folder
                assert (folder / "training.json").read_bytes().startswith(b"%03d" % number)
                assert kept(tmp_path) == [folder.name]


def test_so_many_urls_are_remembered_and_none_is_kept(cache: WeightsCache, monkeypatch):
    monkeypatch.setattr("src.weights.cache.cache.MAX_KNOWN_URLS", 2)
    asked: list[str] = []

    def answer(handler):
        asked.append(handler.path[-1])
        handler.reply(200, make_tar())

    with serving({"/w": answer}) as address:
        for number in (0, 1, 0, 2, 0, 1):
            cache.get(f"{address}/w?sig={number}")
    assert asked == ["0", "1", "2", "1"]  # the least recently used one goes first
    assert "sig" not in repr(vars(cache))


def test_threads_share_one_folder(tmp_path: Path, root: Path, cache: WeightsCache):
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: cache.get("good.tar", local_root=root), range(32)))
    assert len(found) == 1
    assert kept(tmp_path) == [found.pop().key]


def test_a_new_process_finds_what_is_kept(tmp_path: Path, root: Path, cache: WeightsCache):
    first = cache.get("good.tar", local_root=root)
    (root / "good.tar").rename(root / "again.tar")
    again = WeightsCache(tmp_path / "cache", max_archive_bytes=100_000)
    assert again.get("again.tar", local_root=root) == first


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
