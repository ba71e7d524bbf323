"""The bytes of files: in a folder, or in S3 with what is used of it in that folder."""

import asyncio
import hashlib
import secrets
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from src.errors import UserError
from src.files.atomic import sync

BLOCK = 1 << 20
COPIES_BYTES = 20 << 30
_PARTIAL, _PENDING = ".partial", ".pending"


@dataclass(frozen=True)
class BlobInfo:
    """How many bytes there are, and their sums as hexadecimal digits."""

    size: int
    sha256: str
    md5: str


class TooLarge(UserError):
    """More bytes came than may."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"expected at most {max_bytes:,} bytes, found more")


class Blobs:
    """Bytes by key, complete or not there; a key is a relative path of ours, written once.

    All methods but `put` raise FileNotFoundError for a key that is not there, `delete` aside.
    """

    def __init__(self, folder: Path, url: str = "", *, copies_bytes: int = COPIES_BYTES) -> None:
        """Open a folder, or what `url` names beside at most `copies_bytes` of it in the folder.

        Credentials and endpoint of S3 come from the usual AWS_ variables. Raises UserError.
        """
        self._folder = folder
        self._copies_bytes = copies_bytes
        self._copying: dict[str, asyncio.Lock] = {}
        self._in_use: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()
        # What was being written when the last process was killed.
        shutil.rmtree(folder / _PARTIAL, ignore_errors=True)
        (folder / _PARTIAL).mkdir(parents=True)
        (folder / _PENDING).mkdir(exist_ok=True)
        self.left_pending = [unquote(path.name) for path in (folder / _PENDING).iterdir()]
        """The keys that were pending when the last process was killed."""
        self._remote = _open_remote(url) if url else None
        self._store = self._remote or LocalStore(folder)

    async def put(self, key: str, chunks: AsyncIterator[bytes], *, max_bytes: int) -> BlobInfo:
        """Store what the chunks hold once all of them have come; raises TooLarge."""
        async with self._partial() as partial:
            info = await _write(partial, chunks, max_bytes)
            if self._remote is not None:
                await obstore.put_async(self._remote, key, partial)
            await asyncio.to_thread(_move, partial, self._folder / key)
        await self._trim_copies()
        return info

    async def put_file(self, key: str, path: Path) -> BlobInfo:
        """Store what a file holds."""
        size = path.stat().st_size
        return await self.put(key, _read(path), max_bytes=size)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes, or those from `start` to before `end`."""
        size = await self.size(key)
        end = size if end is None else min(end, size)
        if start >= end:  # no store takes an empty range
            return
        answer = await obstore.get_async(self._store, key, options={"range": (start, end)})
        async for chunk in answer.stream(min_chunk_size=BLOCK):
            yield chunk

    async def size(self, key: str) -> int:
        """Return how many bytes there are."""
        return (await obstore.head_async(self._store, key))["size"]

    async def delete(self, key: str) -> None:
        """Remove the bytes, if they are there."""
        if self._remote is not None:
            with suppress(FileNotFoundError):
                await obstore.delete_async(self._remote, key)
        (self._folder / key).unlink(missing_ok=True)

    @contextmanager
    def pending(self, key: str) -> Iterator[None]:
        """Context in which bytes are stored and then named by a row.

        The next process finds the key in `left_pending` if this one is killed in it.
        """
        self._pending[key] += 1
        (self._folder / _PENDING / quote(key, safe="")).touch()
        has_ended = True
        try:
            yield
        except asyncio.CancelledError:
            has_ended = False  # the row may be written yet
            raise
        finally:
            self._pending -= Counter({key: 1})
            if has_ended and key not in self._pending:
                self.settle(key)

    def settle(self, key: str) -> None:
        """Forget that a key was pending."""
        (self._folder / _PENDING / quote(key, safe="")).unlink(missing_ok=True)

    @asynccontextmanager
    async def local_path(self, key: str) -> AsyncIterator[Path]:
        """Context of a file that holds the bytes, complete and left alone as long as it lasts."""
        path = self._folder / key
        self._in_use[key] += 1
        try:
            async with self._copying.setdefault(key, asyncio.Lock()):
                if not path.is_file():
                    await self._copy(key)
            await asyncio.to_thread(path.touch)  # the last used is the last removed
            yield path
        finally:
            self._in_use -= Counter({key: 1})
            if key not in self._in_use:
                self._copying.pop(key, None)
        await self._trim_copies()

    async def _copy(self, key: str) -> None:
        if self._remote is None:
            raise FileNotFoundError(key)
        async with self._partial() as partial:
            answer = await obstore.get_async(self._remote, key)
            with partial.open("xb") as file:
                async for chunk in answer.stream(min_chunk_size=BLOCK):
                    await asyncio.to_thread(file.write, chunk)
            await asyncio.to_thread(_move, partial, self._folder / key)

    @asynccontextmanager
    async def _partial(self) -> AsyncIterator[Path]:
        path = self._folder / _PARTIAL / secrets.token_hex(8)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    async def _trim_copies(self) -> None:
        if self._remote is not None:
            in_use = {self._folder / key for key in self._in_use}
            await asyncio.to_thread(_trim, self._folder, self._copies_bytes, in_use)


def _open_remote(url: str) -> ObjectStore:
    try:
        return from_url(url)
    except (BaseError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"FILES_URL: expected s3://BUCKET or s3://BUCKET/FOLDER: {reason}"
        ) from None


async def _read(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while block := await asyncio.to_thread(file.read, BLOCK):
            yield block


async def _write(path: Path, chunks: AsyncIterator[bytes], max_bytes: int) -> BlobInfo:
    size, sha256, md5 = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    block = bytearray()
    with path.open("xb") as file:

        def write() -> None:
            file.write(block)
            sha256.update(block)
            md5.update(block)

        async for chunk in chunks:
            size += len(chunk)
            if size > max_bytes:
                raise TooLarge(max_bytes)
            block += chunk
            if len(block) >= BLOCK:
                await asyncio.to_thread(write)
                block.clear()
        await asyncio.to_thread(write)
    return BlobInfo(size, sha256.hexdigest(), md5.hexdigest())


def _move(partial: Path, path: Path) -> None:
    sync(partial)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(path)
    sync(path.parent)


def _trim(folder: Path, max_bytes: int, in_use: set[Path]) -> None:
    """Remove the files that were not used for longest, until the rest is small enough."""
    own = {folder / _PARTIAL, folder / _PENDING}
    files = [path for path in folder.rglob("*") if path.is_file() and not own & {*path.parents}]
    stats = [(path.stat(), path) for path in files]
    num_bytes = sum(stat.st_size for stat, _ in stats)
    for stat, path in sorted(stats, key=lambda pair: pair[0].st_mtime):
        if num_bytes > max_bytes and path not in in_use:
            path.unlink(missing_ok=True)
            num_bytes -= stat.st_size
