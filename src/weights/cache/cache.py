"""Fine-tuned weights on disk, unpacked once and known by their content."""

import hashlib
import os
import shutil
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from src.errors import UserError
from src.files.printable import printable
from src.files.scratch import remove_abandoned, scratch_folder
from src.weights.archive.archive import read_archive
from src.weights.archive.members import MEMBERS, REQUIRED
from src.weights.cache.cache_use import CacheUse
from src.weights.cache.keyed_locks import KeyedLocks
from src.weights.download.deadline import CancelToken, never
from src.weights.download.download import fetch
from src.weights.download.url import printable_url

MAX_PATH_CHARACTERS = 1000
MAX_KNOWN_URLS = 10_000
DOWNLOAD, COPY, UNPACK = ".download-", ".copy-", ".unpack-"


@dataclass(frozen=True)
class Weights:
    """An unpacked archive; `key` is the SHA-256 of what was packed."""

    key: str
    folder: Path


class WeightsCache:
    """Unpacks each archive once; the least recently used ones make room for new ones.

    A slow download keeps only those waiting who want the same.
    """

    def __init__(
        self, folder: Path, *, max_archive_bytes: int, max_bytes: int = 50 * 2**30
    ) -> None:
        self._folder = folder
        self._max_archive_bytes = max_archive_bytes
        self._max_bytes = max_bytes
        self._key_of_url: OrderedDict[bytes, str] = OrderedDict()
        """By digest: a URL may be long, and a secret."""
        self._lock = threading.Lock()
        """Held for a moment, when the folder's entries change; never while anything is read."""
        self._sources = KeyedLocks()
        self._num_users: Counter[str] = Counter()
        self._num_hits = self._num_misses = 0
        folder.mkdir(parents=True, exist_ok=True)
        for prefix in (DOWNLOAD, COPY, UNPACK):
            remove_abandoned(prefix, folder)

    def get(self, source: str, *, local_root: Path | None = None) -> Weights:
        """Return the weights that a URL or path names, unpacked.

        With `local_root`, a path must lie below it; without, any path is taken. Raises UserError
        for weights that cannot be had; nothing of them is kept.
        """
        with self.hold(source, local_root=local_root) as weights:
            return weights

    @contextmanager
    def hold(
        self, source: str, *, local_root: Path | None = None, is_canceled: CancelToken = never
    ) -> Iterator[Weights]:
        """Like `get`; the weights stay on disk until the block ends.

        A download goes on for as long as one of those who wait for it wants it.
        """
        is_url = source[:5].lower() == "data:" or "://" in source
        path = None if is_url else find_local(source, local_root)
        with self._sources.hold(path or source, is_canceled) as are_all_canceled:
            weights = self._of_path(path) if path else self._of_url(source, are_all_canceled)
        try:
            yield weights
        finally:
            with self._lock:
                self._num_users[weights.key] -= 1
                self._num_users += Counter()  # drops those without users

    def _of_url(self, url: str, is_canceled: CancelToken) -> Weights:
        if url[:5].lower() == "data:":  # it is its own content
            return self._fetched(url, is_canceled)
        name = hashlib.sha256(url.encode("utf-8", "surrogatepass")).digest()
        known = self._use(self._key_of_url.get(name)) or self._fetched(url, is_canceled)
        with self._lock:
            self._key_of_url[name] = known.key
            self._key_of_url.move_to_end(name)
            if len(self._key_of_url) > MAX_KNOWN_URLS:
                self._key_of_url.popitem(last=False)
        return known

    def _fetched(self, url: str, is_canceled: CancelToken) -> Weights:
        with scratch_folder(DOWNLOAD, self._folder) as folder:
            archive = folder / "weights"
            # The container's own weights are named by the operator, who may keep them at home.
            is_own = url == os.environ.get("COG_WEIGHTS")
            fetch(
                url,
                archive,
                max_bytes=self._max_archive_bytes,
                is_canceled=is_canceled,
                any_address=is_own,
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
                raise UserError(
                    f"weights: {name} is missing in the folder {printable(path.name)!r}"
                )
        digest = hashlib.sha256()
        for file in files:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            digest.update(_sha256(file).encode())
        key = digest.hexdigest()
        known = self._use(key)
        if known is not None:
            return known
        with scratch_folder(COPY, self._folder) as folder:
            for file in files:
                shutil.copyfile(file, folder / file.name)
            return self._keep(folder, key)

    def _of_archive(self, path: Path) -> Weights:
        key = _sha256(path)
        known = self._use(key)
        if known is not None:
            return known
        with scratch_folder(UNPACK, self._folder) as folder:
            read_archive(path, folder, max_bytes=self._max_archive_bytes)
            return self._keep(folder, key)

    def _keep(self, folder: Path, key: str) -> Weights:
        whole = folder / "whole"
        whole.mkdir()
        for file in list(folder.iterdir()):
            if file != whole:
                file.rename(whole / file.name)
        with self._lock:
            # The same content may have come from elsewhere meanwhile.
            if not (self._folder / key).is_dir():
                whole.rename(self._folder / key)
            self._num_misses += 1
            return self._taken(key)

    def _use(self, key: str | None) -> Weights | None:
        with self._lock:
            if key is None or not (self._folder / key).is_dir():
                return None
            self._num_hits += 1
            return self._taken(key)

    def _taken(self, key: str) -> Weights:
        self._num_users[key] += 1
        os.utime(self._folder / key)
        self._make_room()
        return Weights(key, self._folder / key)

    def use(self) -> CacheUse:
        """Return how well the cache serves."""
        with self._lock:
            sizes = self._sizes()
            return CacheUse(len(sizes), sum(sizes.values()), self._num_hits, self._num_misses)

    def _sizes(self) -> dict[Path, int]:
        entries = [e for e in self._folder.iterdir() if e.is_dir() and not e.name.startswith(".")]
        return {entry: sum(f.stat().st_size for f in entry.iterdir()) for entry in entries}

    def _make_room(self) -> None:
        sizes = self._sizes()
        total = sum(sizes.values())
        for entry in sorted(sizes, key=lambda entry: entry.stat().st_mtime):
            if total <= self._max_bytes:
                return
            if not self._num_users[entry.name]:
                shutil.rmtree(entry)
                total -= sizes[entry]


def find_local(source: str, local_root: Path | None) -> Path:
    """Return the file or folder that a path names, below `local_root` if one is given.

    Raises UserError if there is none, or if it lies elsewhere.
    """
    if "\0" in source:
        raise UserError("weights: expected a path, found a NUL character in it")
    if len(source) > MAX_PATH_CHARACTERS:
        raise UserError(
            f"weights: expected a path of at most {MAX_PATH_CHARACTERS:,} characters, "
            f"found {len(source):,}"
        )
    path = Path(source)
    try:
        if local_root is not None:
            root = local_root.resolve()
            path = (root / path).resolve()
            inside = [path, *(path / name for name in MEMBERS)]  # these may be links themselves
            if not all(place.resolve().is_relative_to(root) for place in inside):
                raise UserError(f"weights: {printable_url(source)!r} lies outside of WEIGHTS_DIR")
        exists = path.is_file() or path.is_dir()  # a pipe would be waited for without end
    # A name longer than the file system takes, a loop of links, half of a surrogate pair.
    except (OSError, RuntimeError, UnicodeError):
        exists = False
    if not exists:
        raise UserError(f"weights: there is no file or folder {printable_url(source)!r}")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
