"""The process's own counts are the sums of what its requests were told."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from src.errors import UserError
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
        yield TextPredictor(None)


def ask(predictor: TextPredictor, **inputs: Any) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    request = {**REQUEST, "max_new_tokens": 100, "min_new_tokens": 100, **inputs}
    list(predictor.stream(request, record_metric=metrics.__setitem__))
    return metrics


def test_counts_are_the_sums_over_all_requests(predictor: TextPredictor):
    prompts = ["It is red. " * 12, "What is it?", "It is red. " * 9]
    told = [ask(predictor, prompt=prompt) for prompt in prompts]
    process = told[-1]["process"]
    for name in SUMS:
        assert process[name] == sum(metrics[name] for metrics in told), name
    assert process["accepted_token_count"] > 0
    assert process["cached_input_token_count"] > 0
    num_tokens = sum(metrics["input_token_count"] for metrics in told)
    assert process["input_token_count"] + process["cached_input_token_count"] == num_tokens
    assert process["requests_served"] == len(told)
    assert process["answers_running"] <= 1
    assert process["answers_waiting"] == 0
    assert process["tokens_per_second"] > 0
    assert process["memory_bytes"] > 50e6


def test_each_cache_tells_what_it_held(predictor: TextPredictor):
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
