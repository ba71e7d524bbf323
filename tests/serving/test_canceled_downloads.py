"""A slow download is its request's own affair, and ends with it."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.errors import UserError
from src.serving.predictor import TextPredictor
from tests.serving.request import REQUEST
from tests.weights.http_server import serving

NUM_THREADS = 2


@pytest.fixture
def predictor(
    base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TextPredictor]:
    monkeypatch.setattr("src.serving.predictor.MAX_PREPARING", NUM_THREADS)
    monkeypatch.setenv("BASE_MODEL", str(base_dir))
    monkeypatch.setenv("WEIGHTS_CACHE", str(tmp_path / "cache"))
    predictor = TextPredictor(None)
    yield predictor
    predictor.close()


@pytest.fixture
def slow_address() -> Iterator[str]:
    """An address that sends a byte now and then, for a minute or until the test is over."""
    is_over = threading.Event()

    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "10000")
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(600):
                handler.wfile.write(b"x")
                if is_over.wait(0.1):
                    return

    with serving({f"/{number}": drip for number in range(NUM_THREADS)}) as address:
        yield address
        is_over.set()


async def answer(predictor: TextPredictor, weights: str | None) -> str:
    request = {**REQUEST, "replicate_weights": weights}
    parts = predictor.stream_async(request, record_metric=lambda *_, **__: None)
    return "".join([part async for part in parts])


def test_slow_downloads_hold_up_no_one_else(predictor: TextPredictor, slow_address: str):
    async def ask() -> None:
        downloads = [
            asyncio.create_task(answer(predictor, f"{slow_address}/{number}"))
            for number in range(NUM_THREADS)
        ]
        await asyncio.sleep(0.5)
        assert await asyncio.wait_for(answer(predictor, None), 20)
        assert not any(download.done() for download in downloads)
        for download in downloads:
            download.cancel()
        # Their threads are free for others.
        with pytest.raises(UserError, match="empty"):
            await asyncio.wait_for(answer(predictor, "data:,"), 20)

    started = time.monotonic()
    asyncio.run(ask())
    assert time.monotonic() - started < 40
