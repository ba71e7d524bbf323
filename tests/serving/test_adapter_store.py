"""Adapters are fetched and loaded once, wait for nobody else's, and stay while they are used."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import src.weights.cache.cache
from src.errors import UserError
from src.serving.lora.host_cache import Adapter, AdapterStore
from src.serving.lora.weights import adapter_bytes_limit
from src.settings import MAX_RANK
from src.weights.adapter.adapter import read_adapter
from src.weights.archive.archive import write_archive
from src.weights.cache.cache import Weights, WeightsCache
from tests.weights.cached import get


def test_an_adapter_of_the_largest_rank_has_room():
    """What training makes is taken, in float32 too."""
    adapted = 4 * MAX_RANK * (300 + 500)
    assert adapted < adapter_bytes_limit({"q_proj": (300, 500)}) < adapted + 2**21


class Counting:
    """Loads adapters for a store and counts how often."""

    def __init__(self, engine) -> None:
        self.engine, self.keys = engine, []

    def __call__(self, weights: Weights) -> Adapter:
        self.keys.append(weights.key)
        file = read_adapter(weights.folder, self.engine.linear_shapes)
        return Adapter(self.engine.load_adapter(file, key=weights.key), file.manifest)


@pytest.fixture
def load(engine) -> Counting:
    return Counting(engine)


@pytest.fixture
def cache(tmp_path: Path) -> WeightsCache:
    return WeightsCache(tmp_path / "cache", max_archive_bytes=10**7)


def test_many_askers_at_once_load_once(cache, load, adapters):
    store = AdapterStore(cache, load)
    with ThreadPoolExecutor(16) as askers:
        found = list(
            askers.map(lambda _: store.acquire(str(adapters["all"]), local_root=None), range(16))
        )
    assert len(load.keys) == 1
    assert len({id(adapter.loaded) for adapter in found}) == 1
    assert sum(not adapter.was_loaded for adapter in found) == 1
    assert (store.use.hits, store.use.misses) == (15, 1)


def test_a_slow_download_blocks_those_alone_who_want_the_same(
    cache, load, adapters, tmp_path, monkeypatch
):
    """One server never answers in time; others' adapters come, and it is asked only once."""
    write_archive(adapters["few"], tmp_path / "few.tar")
    may_end, asked = threading.Event(), []

    def slow(url: str, path: Path, **_) -> None:
        asked.append(url)
        assert may_end.wait(30)
        shutil.copyfile(tmp_path / "few.tar", path)

    monkeypatch.setattr(src.weights.cache.cache, "fetch", slow)
    store = AdapterStore(cache, load)
    with ThreadPoolExecutor(4) as askers:
        waiting = [
            askers.submit(store.acquire, "https://host/slow.tar", local_root=None) for _ in range(3)
        ]
        while not asked:
            time.sleep(0.01)
        started = time.monotonic()
        store.acquire(str(adapters["all"]), local_root=None)
        assert time.monotonic() - started < 5
        assert not any(future.done() for future in waiting)
        may_end.set()
        assert len({future.result().loaded.key for future in waiting}) == 1
    assert len(asked) == 1


def test_what_failed_is_asked_for_again(cache, load, adapters, tmp_path, monkeypatch):
    write_archive(adapters["few"], tmp_path / "few.tar")
    store = AdapterStore(cache, load)

    def refuse(url: str, path: Path, **_) -> None:
        raise UserError("HTTP 503")

    monkeypatch.setattr(src.weights.cache.cache, "fetch", refuse)
    with pytest.raises(UserError, match="503"):
        store.acquire("https://host/a.tar", local_root=None)
    monkeypatch.setattr(
        src.weights.cache.cache,
        "fetch",
        lambda url, path, **_: shutil.copyfile(tmp_path / "few.tar", path),
    )
    assert store.acquire("https://host/a.tar", local_root=None).loaded is not None
    (tmp_path / "not.tar").write_text("no archive")
    for _ in range(2):
        with pytest.raises(UserError, match=r"not a \.tar"):
            store.acquire(str(tmp_path / "not.tar"), local_root=None)
    assert len(load.keys) == 1


def test_the_bytes_are_bounded_and_those_in_use_stay(cache, load, adapters):
    store = AdapterStore(cache, load, max_bytes=1)
    sources = [str(path) for path in adapters.values()]
    held = store.acquire(sources[0], local_root=None)
    for source in sources[1:]:
        store.release(store.acquire(source, local_root=None))
    assert held.loaded is not None
    assert store.use.bytes == held.loaded.num_bytes
    assert store.acquire(sources[0], local_root=None).loaded is held.loaded
    assert len(load.keys) == len(sources)
    store.release(held)
    store.release(held)
    assert store.use.bytes == 0


def test_weights_on_disk_stay_while_they_are_read(tmp_path, adapters):
    cache = WeightsCache(tmp_path / "cache", max_archive_bytes=10**7, max_bytes=1)
    with cache.hold(str(adapters["all"])) as weights:
        other = get(cache, str(adapters["few"]))
        assert weights.folder.is_dir()
        assert other.key != weights.key
    get(cache, str(adapters["rslora"]))
    assert not weights.folder.is_dir()
