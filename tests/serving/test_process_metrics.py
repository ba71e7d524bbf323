"""The process's own counts are the sums of what was reported of its requests."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from src.errors import UserError
from src.serving.engine.request import Sequence
from src.serving.engine.totals import WINDOW_SECONDS, Totals
from src.serving.predictor import TextPredictor
from tests.serving.request import REQUEST

SUMS = (
    "cached_input_token_count",
    "output_token_count",
    "proposed_token_count",
    "accepted_token_count",
)


@pytest.fixture
def predictor(base_dir: Path, adapters: dict[str, Path], tmp_path: Path) -> Iterator[TextPredictor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BASE_MODEL", str(base_dir))
        patch.setenv("WEIGHTS_DIR", str(adapters["all"].parent))
        patch.setenv("WEIGHTS_CACHE", str(tmp_path / "cache"))
        predictor = TextPredictor(None)
        yield predictor
        predictor.close()


def ask(predictor: TextPredictor, **inputs: Any) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    request = {**REQUEST, "max_new_tokens": 100, "min_new_tokens": 100, **inputs}
    list(predictor.stream(request, record_metric=metrics.__setitem__))
    return metrics


def test_counts_are_the_sums_over_all_requests(predictor: TextPredictor):
    prompts = ["It is red. " * 12, "What is it?", "It is red. " * 9]
    reported = [ask(predictor, prompt=prompt) for prompt in prompts]
    process = reported[-1]["process"]
    for name in SUMS:
        assert process[name] == sum(metrics[name] for metrics in reported), name
    assert process["accepted_token_count"] > 0
    assert process["cached_input_token_count"] > 0
    num_tokens = sum(metrics["input_token_count"] for metrics in reported)
    assert process["input_token_count"] + process["cached_input_token_count"] == num_tokens
    assert process["requests_served"] == len(reported)
    assert process["answers_running"] <= 1
    assert process["answers_waiting"] == 0
    assert process["tokens_per_second"] > 0
    assert process["memory_bytes"] > 50e6


def test_each_cache_reports_what_it_held(predictor: TextPredictor):
    names = ["all", "few", "all", "all"]
    process = [ask(predictor, replicate_weights=name) for name in names][-1]["process"]
    for place in ("adapters_on_disk", "adapters_in_memory", "adapters_on_device"):
        use = process[place]
        assert use.pop("bytes") > 1000
        assert use == {"entries": 2, "hits": 2, "misses": 2}, place


def test_requests_count_by_how_they_end(predictor: TextPredictor):
    async def cancel_one() -> None:
        request = {**REQUEST, "max_new_tokens": 200, "min_new_tokens": 200}
        stream = predictor.stream_async(request, record_metric=lambda *_: None)
        await anext(stream)
        await stream.aclose()

    ask(predictor)
    with pytest.raises(UserError):
        ask(predictor, top_p=7)
    asyncio.run(cancel_one())
    closed = predictor.stream({**REQUEST}, record_metric=lambda *_: None)
    next(closed)
    closed.close()
    process = ask(predictor)["process"]
    ends = {name: process[f"requests_{name}"] for name in ("served", "failed", "canceled")}
    assert ends == {"served": 2, "failed": 1, "canceled": 2}


def test_the_speed_is_that_of_the_last_minute(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("src.serving.engine.totals.time.monotonic", lambda: clock[0])
    totals = Totals()
    for _ in range(2 * WINDOW_SECONDS):
        for _ in range(5):
            totals.count_output_token()
        clock[0] += 1
    assert totals.tokens_per_second() == pytest.approx(5, rel=0.05)
    assert totals.num_output_tokens == 10 * WINDOW_SECONDS
    clock[0] += WINDOW_SECONDS
    assert totals.tokens_per_second() == 0


def test_a_closed_predictor_leaves_no_thread(
    base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def own_threads() -> set[threading.Thread]:
        names = ("engine", "prepare", "fetch")
        return {thread for thread in threading.enumerate() if thread.name.startswith(names)}

    before = own_threads()
    monkeypatch.setenv("BASE_MODEL", str(base_dir))
    monkeypatch.setenv("WEIGHTS_CACHE", str(tmp_path / "cache"))
    predictor = TextPredictor(None)
    asyncio.run(ask_async(predictor))
    started = own_threads() - before
    assert len(started) >= 2
    predictor.close()
    for thread in started:
        thread.join(timeout=10)
    assert not started & own_threads()


async def ask_async(predictor: TextPredictor) -> str:
    stream = predictor.stream_async(dict(REQUEST), record_metric=lambda *_: None)
    return "".join([text async for text in stream])


@pytest.mark.parametrize(
    "ask_once",
    [ask, lambda predictor: asyncio.run(asyncio.wait_for(ask_async(predictor), 30))],
    ids=["stream", "stream_async"],
)
def test_a_client_of_an_engine_that_has_stopped_waits_for_nothing(
    predictor: TextPredictor,
    monkeypatch: pytest.MonkeyPatch,
    ask_once: Callable[[TextPredictor], Any],
):
    """As where its thread ends between a request and the answer to it."""
    engine = predictor._engine
    monkeypatch.setattr(engine, "submit", lambda request: Sequence(request, max_tokens=1))
    engine.close()
    with pytest.raises(RuntimeError, match="the engine has stopped"):
        ask_once(predictor)
