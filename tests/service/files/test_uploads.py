"""What an owner has stored is what is counted, however bytes come and go."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from src.service.files.blobs import Blobs
from src.service.files.removal import delete_unnamed
from src.service.store.database import Database
from src.service.store.file_rows import add_file, find_file
from src.service.store.usage import count_usage, find_usage
from tests.service.files.test_blobs import files_in, put
from tests.service.serving import Served, serving

LIMIT = 10_000


async def in_pieces(*pieces: bytes, pause: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    """Yield a body that has no Content-Length; it waits before its last piece."""
    for number, piece in enumerate(pieces):
        if pause is not None and number == len(pieces) - 1:
            await pause.wait()
        yield piece


async def begin(served: Served) -> str:
    return (await served.ann.post("/v1/upload/data.jsonl")).json()["upload_url"]


def assert_counted(served: Served, num_bytes: int) -> None:
    """Assert that so many bytes are stored, in rows and as bytes, and counted."""
    database = served.service.database
    assert database.read_now(find_usage, "ann")[0] == num_bytes
    database.write_now(count_usage)
    assert database.read_now(find_usage, "ann")[0] == num_bytes
    folder = served.service.settings.data_dir / "files"
    assert sum((folder / name).stat().st_size for name in files_in(folder)) == num_bytes


def test_a_body_without_a_length_counts_as_much_as_it_brings(tmp_path: Path):
    async def run() -> None:
        async with serving(tmp_path, stored_bytes=LIMIT) as served:
            for _ in range(2):
                refused = await served.ann.put(
                    await begin(served), content=in_pieces(b"x" * LIMIT, b"x")
                )
                assert refused.status_code == 429, refused.text
                assert "retry-after" in refused.headers
                assert_counted(served, 0)
            url = await begin(served)
            assert (await served.ann.put(url, content=in_pieces(b"x" * LIMIT))).is_success
            assert_counted(served, LIMIT)
            assert (await served.ann.put(url, content=b"y")).status_code == 409
            assert (await served.ann.get(url)).content == b"x" * LIMIT

    asyncio.run(run())


def test_files_that_come_together_have_no_more_room_than_one_after_another(tmp_path: Path):
    async def run() -> None:
        async with serving(tmp_path, stored_bytes=LIMIT) as served:
            form = {"content": ("f", b"x" * (LIMIT // 2 - 1))}
            answers = await asyncio.gather(
                *(served.ann.post("/v1/files", files=form) for _ in range(8))
            )
            assert sorted(answer.status_code for answer in answers) == [201] * 2 + [429] * 6
            assert_counted(served, LIMIT - 2)

    asyncio.run(run())


def test_of_two_that_put_one_upload_one_is_refused(tmp_path: Path):
    async def run() -> None:
        async with serving(tmp_path) as served:
            url, pause = await begin(served), asyncio.Event()
            first = asyncio.create_task(
                served.ann.put(url, content=in_pieces(b"first", b"!", pause=pause))
            )
            while not served.service.uploads:
                await asyncio.sleep(0.01)
            second = await served.bob.put(url, content=b"the second")
            assert second.status_code == 409
            pause.set()
            assert (await first).is_success
            assert (await served.ann.get(url)).content == b"first!"
            assert_counted(served, 6)

    asyncio.run(run())


def test_an_upload_that_is_broken_off_leaves_nothing_and_may_come_again(tmp_path: Path):
    async def run() -> None:
        async with serving(tmp_path) as served:
            url = await begin(served)

            async def broken() -> AsyncIterator[bytes]:
                yield b"x" * 100_000
                raise ConnectionResetError

            with suppress(ConnectionResetError, httpx.HTTPError):
                await served.ann.put(url, content=broken())
            while served.service.uploads:
                await asyncio.sleep(0.01)
            assert_counted(served, 0)
            assert (await served.ann.put(url, content=b"whole")).is_success
            assert_counted(served, 5)

    asyncio.run(run())


def test_an_upload_whose_row_is_deleted_meanwhile_leaves_nothing(tmp_path: Path):
    async def run() -> None:
        async with serving(tmp_path) as served:
            url, pause = await begin(served), asyncio.Event()
            coming = asyncio.create_task(served.ann.put(url, content=in_pieces(b"x", pause=pause)))
            while not served.service.uploads:
                await asyncio.sleep(0.01)
            (upload,) = served.service.uploads
            assert (await served.ann.delete(f"/v1/files/{upload}")).status_code == 204
            pause.set()
            assert (await coming).status_code == 404
            assert_counted(served, 0)

    asyncio.run(run())


def test_a_training_that_is_refused_leaves_none_of_the_files_inside_it(tmp_path: Path):
    data = base64.b64encode(json.dumps({"text": "some"}).encode() + b"\n").decode()
    url = f"data:None;base64,{data}"

    async def run() -> None:
        async with serving(tmp_path) as served:
            model = {"owner": "ann", "name": "m", "visibility": "private", "hardware": "cpu"}
            assert (await served.ann.post("/v1/models", json=model)).is_success
            base = (await served.ann.get("/v1/models/meta/llama-2-7b")).json()
            version = base["latest_version"]["id"]
            for more in (
                {"learning_rate": "fast"},
                {"validation_data": "data:,no examples"},
                {"validation_data": "ftp://example.com/data.jsonl"},
            ):
                answer = await served.ann.post(
                    f"/v1/models/meta/llama-2-7b/versions/{version}/trainings",
                    json={"destination": "ann/m", "input": {"train_data": url, **more}},
                )
                assert answer.status_code == 422, answer.text
                assert_counted(served, 0)

    asyncio.run(run())


def test_bytes_that_a_killed_service_left_without_a_row_are_deleted(tmp_path: Path):
    """Those with a row stay, and so does what another put there."""
    database = Database(f"sqlite:///{tmp_path / 'service.db'}")
    folder = tmp_path / "files"

    async def run() -> None:
        blobs = Blobs(folder)
        for name in ("named", "unnamed", "stranger"):
            await put(blobs, name, name.encode())
        sums = {"size": 5, "sha256": hashlib.sha256(b"named").hexdigest(), "md5": ""}
        values = {"owner": "ann", "name": "f", "content_type": "text/plain", "api": "replicate"}
        await database.write(add_file, {"id": "named", **values, **sums})
        pending = [blobs.pending(name) for name in ("named", "unnamed")]
        for context in pending:  # in which the service is killed
            context.__enter__()
        after = Blobs(folder)
        await delete_unnamed(database, after)
        assert [await after.size(name) for name in ("named", "stranger")] == [5, 8]
        with pytest.raises(FileNotFoundError):
            await after.size("unnamed")
        assert Blobs(folder).left_pending == []
        assert await database.read(find_file, "named") is not None

    asyncio.run(run())
    database.close()
