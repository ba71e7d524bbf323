"""Bytes are stored complete or not at all, in a folder as in S3."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from src.errors import UserError
from src.service.files.blobs import BLOCK, BlobInfo, Blobs, TooLarge

MOTO = shutil.which("moto_server")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket of moto's server on loopback."""
    if MOTO is None:
        pytest.skip("needs moto_server on the path (pip install 'moto[server]' elsewhere)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([MOTO, "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                bucket = urllib.request.Request(f"{address}/bucket", method="PUT")
                urllib.request.urlopen(bucket).close()
                break
            time.sleep(0.1)
        yield address
    finally:
        server.kill()
        server.wait()


@pytest.fixture(params=["folder", "memory", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Blobs:
    """A store of each kind; one in memory is as far away as S3 and needs no server."""
    if request.param == "folder":
        return Blobs(tmp_path / "blobs")
    if request.param == "memory":
        return Blobs(tmp_path / "blobs", "memory:///")
    settings = {
        "AWS_ENDPOINT_URL": request.getfixturevalue("s3"),
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return Blobs(tmp_path / "blobs", "s3://bucket/some/folder")


async def chunks_of(data: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def put(blobs: Blobs, key: str, data: bytes) -> BlobInfo:
    return await blobs.put(key, chunks_of(data), max_bytes=len(data))


async def read(blobs: Blobs, key: str, *span: int) -> bytes:
    return b"".join([chunk async for chunk in blobs.get(key, *span)])


def files_in(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


@pytest.mark.parametrize("size", [0, 1, BLOCK, 12 * BLOCK + 17])
def test_what_was_put_is_what_comes_back(blobs: Blobs, size: int):
    async def run() -> None:
        data = os.urandom(size)
        info = await put(blobs, "files/one", data)
        assert info == BlobInfo(
            size, hashlib.sha256(data).hexdigest(), hashlib.md5(data).hexdigest()
        )
        assert await blobs.size("files/one") == size
        assert await read(blobs, "files/one") == data
        for span in [(0, 1), (1, 7), (size // 2, size), (size // 2, size + 9), (size, size + 9)]:
            assert await read(blobs, "files/one", *span) == data[slice(*span)]
        async with blobs.local_path("files/one") as path:
            assert path.read_bytes() == data

    asyncio.run(run())


def test_a_file_is_stored_as_it_is(blobs: Blobs, tmp_path: Path):
    async def run() -> None:
        data = os.urandom(3 * BLOCK + 1)
        (tmp_path / "file").write_bytes(data)
        info = await blobs.put_file("weights", tmp_path / "file")
        assert (info.size, info.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert await read(blobs, "weights") == data

    asyncio.run(run())


def test_what_is_not_there_is_an_error(blobs: Blobs):
    async def run() -> None:
        await put(blobs, "files/one", b"data")
        await blobs.delete("files/one")
        await blobs.delete("files/one")
        for key in ("files/one", "files/never"):
            with pytest.raises(FileNotFoundError):
                await blobs.size(key)
            with pytest.raises(FileNotFoundError):
                await read(blobs, key)
            with pytest.raises(FileNotFoundError):
                async with blobs.local_path(key):
                    pass

    asyncio.run(run())


def test_too_many_bytes_leave_none(blobs: Blobs, tmp_path: Path):
    async def run() -> None:
        asked = []

        async def endless() -> AsyncIterator[bytes]:
            while True:
                asked.append(1)
                yield bytes(BLOCK)

        with pytest.raises(TooLarge, match=r"^expected at most 3,145,728 bytes, found more$"):
            await blobs.put("files/one", endless(), max_bytes=3 * BLOCK)
        assert len(asked) == 4
        with pytest.raises(FileNotFoundError):
            await blobs.size("files/one")

    asyncio.run(run())
    assert files_in(tmp_path) == []


def test_an_upload_that_breaks_off_leaves_nothing(blobs: Blobs, tmp_path: Path):
    async def run() -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield bytes(6 * BLOCK)
            raise ConnectionError("gone")

        async def slow() -> AsyncIterator[bytes]:
            yield bytes(6 * BLOCK)
            await asyncio.sleep(60)

        with pytest.raises(ConnectionError):
            await blobs.put("files/one", broken(), max_bytes=10 * BLOCK)
        putting = asyncio.create_task(blobs.put("files/one", slow(), max_bytes=10 * BLOCK))
        await asyncio.sleep(0.2)
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        with pytest.raises(FileNotFoundError):
            await blobs.size("files/one")

    asyncio.run(run())
    assert files_in(tmp_path) == []


def test_a_killed_process_leaves_nothing_after_the_next_start(tmp_path: Path):
    code = """
import asyncio, sys
from pathlib import Path
from src.service.files.blobs import BLOCK, Blobs

async def chunks():
    yield bytes(5 * BLOCK)
    print("written", flush=True)
    await asyncio.sleep(60)

asyncio.run(Blobs(Path(sys.argv[1])).put("files/one", chunks(), max_bytes=10 * BLOCK))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(files_in(tmp_path)) == 1
    blobs = Blobs(tmp_path)
    assert files_in(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        asyncio.run(blobs.size("files/one"))


def test_copies_are_kept_while_they_are_used_and_while_there_is_room(tmp_path: Path):
    blobs = Blobs(tmp_path, "memory:///", copies_bytes=250)

    async def run() -> None:
        for name in "abc":
            await put(blobs, name, name.encode() * 100)
        assert files_in(tmp_path) == ["b", "c"]
        async with blobs.local_path("a") as first, blobs.local_path("b") as second:
            async with blobs.local_path("c"):
                assert files_in(tmp_path) == ["a", "b", "c"]
            assert (first.read_bytes(), second.read_bytes()) == (b"a" * 100, b"b" * 100)
            assert files_in(tmp_path) == ["a", "b"]
        assert [await read(blobs, name) for name in "abc"] == [b"a" * 100, b"b" * 100, b"c" * 100]

    asyncio.run(run())


def test_those_who_come_together_share_a_copy(tmp_path: Path):
    blobs = Blobs(tmp_path, "memory:///")

    async def use() -> int:
        async with blobs.local_path("one") as path:
            await asyncio.sleep(0.05)
            return path.stat().st_ino

    async def run() -> list[int]:
        await put(blobs, "one", bytes(BLOCK))
        (tmp_path / "one").unlink()
        return await asyncio.gather(*(use() for _ in range(20)))

    assert len(set(asyncio.run(run()))) == 1


@pytest.mark.parametrize("url", ["s3:/", "bucket", "ftp://host/x"])
def test_a_place_that_cannot_be_meant_is_refused(tmp_path: Path, url: str):
    with pytest.raises(UserError, match=r"^FILES_URL: expected s3://BUCKET"):
        Blobs(tmp_path, url)
