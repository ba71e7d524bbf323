"""Fine-tuned weights on disk, unpacked once and known by their content."""

import hashlib
import os
import shutil
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from src.errors import UserError
from src.files.atomic import sync
from src.files.printable import printable
from src.weights.archive.archive import read_archive
from src.weights.archive.members import MEMBERS, REQUIRED
from src.weights.archive.other_files import missing_file
from src.weights.cache.cache_folder import claim_folder
from src.weights.cache.cache_use import CacheUse
from src.weights.cache.keyed_locks import KeyedLocks
from src.weights.cache.local_path import find_local
from src.weights.download.deadline import CancelToken, never
from src.weights.download.download import fetch

MAX_LISTED = 1000
"""Entries of a folder without an adapter that are looked at to tell what it is."""
MAX_KNOWN = 10_000
"""URLs and files whose content is remembered."""
UNSETTLED_NANOSECONDS = 2 * 10**9
"""A file may change twice within one tick of its file system's clock."""


@dataclass(frozen=True)
class Weights:
    """An unpacked archive; `key` is the SHA-256 of what was packed."""

    key: str
    folder: Path


class WeightsCache:
    """Unpacks each archive once; the least recently used ones make room for new ones.

    A slow download keeps only those waiting who want the same. `own_url` is the one that the
    operator names, who may keep weights at a private address. Each process has a part of the folder
    to itself, which the next one takes over.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_archive_bytes: int,
        max_bytes: int = 50 * 2**30,
        own_url: str | None = None,
    ) -> None:
        self._max_archive_bytes, self._max_bytes = max_archive_bytes, max_bytes
        self._own_url = own_url
        self.folder, self._claim = claim_folder(folder)
        self._known: OrderedDict[object, str] = OrderedDict()
        """Keys of weights by the digest of a URL, which may be long and a secret, or by a file."""
        self._lock = threading.Lock()
        """Held for a moment, when the folder's entries change; never while anything is read."""
        self._sources = KeyedLocks()
        self._num_users: Counter[str] = Counter()
        self._refused: set[str] = set()
        self._num_hits = self._num_misses = 0
        entries = sorted(self.folder.iterdir(), key=lambda entry: entry.stat().st_mtime_ns)
        self._sizes = OrderedDict((entry.name, _num_bytes(entry)) for entry in entries)
        """In bytes, the least recently used first."""

    @contextmanager
    def hold(
        self, source: str, *, local_root: Path | None = None, is_canceled: CancelToken = never
    ) -> Iterator[Weights]:
        """Context of the weights that a URL or path names, unpacked; they stay until it ends.

        With `local_root`, a path must lie below it; without, any path is taken. A download ends
        when all who wait for it are canceled. Raises UserError for weights that cannot be had;
        nothing of them is kept, nor of weights that a UserError in the context refuses.
        """
        is_url = source[:5].lower() == "data:" or "://" in source
        path = None if is_url else find_local(source, local_root)
        with self._sources.hold(path or source, is_canceled) as are_all_canceled:
            weights = self._of_path(path) if path else self._of_url(source, are_all_canceled)
        try:
            yield weights
        except UserError:
            self._refused.add(weights.key)  # it may have been damaged on disk
            raise
        finally:
            with self._lock:
                self._num_users[weights.key] -= 1
                if weights.key in self._refused and not self._num_users[weights.key]:
                    self._refused.remove(weights.key)
                    self._remove(weights.key)
                self._num_users += Counter()  # drops those without users

    def use(self) -> CacheUse:
        """Return how well the cache serves."""
        with self._lock:
            num_bytes = sum(self._sizes.values())
            return CacheUse(len(self._sizes), num_bytes, self._num_hits, self._num_misses)

    def _of_url(self, url: str, is_canceled: CancelToken) -> Weights:
        if url[:5].lower() == "data:":  # it is its own content
            return self._fetched(url, is_canceled)
        name = hashlib.sha256(url.encode("utf-8", "surrogatepass")).digest()
        weights = self._use(self._recall(name)) or self._fetched(url, is_canceled)
        self._remember(name, weights.key)
        return weights

    def _fetched(self, url: str, is_canceled: CancelToken) -> Weights:
        with TemporaryDirectory(prefix=".", dir=self.folder) as scratch:
            archive = Path(scratch) / "weights"
            fetch(
                url,
                archive,
                max_bytes=self._max_archive_bytes,
                is_canceled=is_canceled,
                any_address=url == self._own_url,
                is_archive=True,
            )
            return self._of_archive(archive)

    def _of_path(self, path: Path) -> Weights:
        if not path.is_dir():
            return self._of_archive(path)
        # A folder may be written to while it is served, so its files are copied too.
        files = sorted(f for f in path.iterdir() if f.name in MEMBERS and f.is_file())
        for name in REQUIRED:
            if name not in {file.name for file in files}:
                others = (f for f in islice(path.rglob("*"), MAX_LISTED) if f.is_file())
                place = f"weights: folder {printable(path.name)!r}"
                raise missing_file(name, place, [str(f.relative_to(path)) for f in others])
        digest = hashlib.sha256()
        for file in files:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            digest.update(self._sha256(file).encode())
        key = digest.hexdigest()
        return self._use(key) or self._insert(
            key, lambda folder: [shutil.copyfile(file, folder / file.name) for file in files]
        )

    def _of_archive(self, path: Path) -> Weights:
        key = self._sha256(path)
        return self._use(key) or self._insert(
            key, lambda folder: read_archive(path, folder, max_bytes=self._max_archive_bytes)
        )

    def _sha256(self, path: Path) -> str:
        with path.open("rb") as file:
            now = os.fstat(file.fileno())
            name = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns)
            key = self._recall(name)
            if key is None:
                key = hashlib.file_digest(file, "sha256").hexdigest()
                if now.st_mtime_ns < time.time_ns() - UNSETTLED_NANOSECONDS:
                    self._remember(name, key)
            return key

    def _recall(self, name: object) -> str | None:
        with self._lock:
            return self._known.get(name)

    def _remember(self, name: object, key: str) -> None:
        with self._lock:
            self._known[name] = key
            self._known.move_to_end(name)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)

    def _use(self, key: str | None) -> Weights | None:
        with self._lock:
            if key is None or key not in self._sizes:
                return None
            self._num_hits += 1
            return self._taken(key)

    def _insert(self, key: str, write: Callable[[Path], object]) -> Weights:
        """Keep what is written into a folder, once all of it is on the disk."""
        with TemporaryDirectory(prefix=".", dir=self.folder) as scratch:
            folder = Path(scratch) / key
            folder.mkdir()
            write(folder)
            for path in (*folder.iterdir(), folder):
                sync(path)
            with self._lock:
                self._num_misses += 1
                if key not in self._sizes:  # it may have come from elsewhere meanwhile
                    folder.rename(self.folder / key)
                    self._sizes[key] = _num_bytes(self.folder / key)
                weights = self._taken(key)
                self._make_room()
                return weights

    def _taken(self, key: str) -> Weights:
        self._num_users[key] += 1
        self._sizes.move_to_end(key)
        os.utime(self.folder / key)  # for the process that takes the folder over
        return Weights(key, self.folder / key)

    def _make_room(self) -> None:
        for key in list(self._sizes):
            if sum(self._sizes.values()) <= self._max_bytes:
                return
            if not self._num_users[key]:
                self._remove(key)

    def _remove(self, key: str) -> None:
        shutil.rmtree(self.folder / key, ignore_errors=True)
        del self._sizes[key]


def _num_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
