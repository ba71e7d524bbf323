"""No request meets a shape of step that is captured only then."""

from functools import partial

import pytest

from src.serving.engine.batch import Batch
from src.serving.engine.model_runner import bucket_of
from src.serving.warm_up import NUM_STEPS, captured_loads, warm_up
from tests.serving.clients import GREEDY, Client
from tests.serving.fake_graph import FakeCapture


@pytest.mark.parametrize("num_slots", [1, 5, 16, 32])
@pytest.mark.parametrize("max_seq_len", [64, 256, 1000, 4096, 32768])
def test_all_shapes_are_met(num_slots: int, max_seq_len: int):
    bucket = partial(bucket_of, max_seq_len=max_seq_len)
    met = {
        (num_rows, bucket(num_tokens + step))
        for num_rows, num_tokens in captured_loads(num_slots, max_seq_len, bucket)
        for step in range(1, NUM_STEPS)
    }
    for num_rows in range(1, num_slots + 1):
        captured_rows = min(1 << (num_rows - 1).bit_length(), num_slots)
        for length in range(1, max_seq_len - NUM_STEPS, 7):
            assert (captured_rows, bucket(length)) in met


def test_an_engine_that_cannot_answer_is_not_ready(new_engine, monkeypatch):
    def fail(batch: Batch) -> None:
        raise RuntimeError("no step can be run")

    monkeypatch.setattr(Batch, "step", fail)
    with pytest.raises(RuntimeError, match="no step can be run"):
        warm_up(new_engine(), None)


@pytest.mark.parametrize("own", [None, "all"])
def test_nothing_is_captured_for_the_first_that_brings_an_adapter(new_engine, loaded, own):
    capture = FakeCapture()
    engine = new_engine(capture=capture, max_slots=2)
    warm_up(engine, loaded.get(own))
    num_captures = capture.num_captures
    assert num_captures > 0
    clients = [Client(engine, [5 + n, 6], GREEDY, adapter=loaded["rank-13"]) for n in range(2)]
    for client in clients:
        client.answer()
    assert capture.num_captures == num_captures
