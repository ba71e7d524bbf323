"""A small key/value cache changes when an answer comes, and never what it says."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from src.errors import UserError
from src.serving.engine.engine import Engine
from src.serving.engine.model_runner import ModelRunner
from src.serving.sampling import SamplingParams
from tests.serving.clients import GREEDY, Client, random_prompts
from tests.serving.fake_graph import FakeCapture
from tests.serving.test_batch import soak

CONTEXT_BLOCKS = 8  # 256 tokens


def cache_bytes(engine: Engine, num_pages: float) -> float:
    return num_pages * engine.runner.kv_cache.tensors.page_bytes


@pytest.fixture
def small_engine(engine, new_engine) -> Callable[..., Engine]:
    """Makes engines with room for one request of the whole context, and little more."""

    def make(num_blocks: int = CONTEXT_BLOCKS + 2, **options) -> Engine:
        return new_engine(cache_bytes=cache_bytes(engine, num_blocks), **options)

    return make


@pytest.mark.parametrize("is_captured", [False, True])
def test_answers_are_the_same_where_the_cache_is_full(engine, small_engine, loaded, is_captured):
    kinds = [
        GREEDY,
        SamplingParams(max_new_tokens=64, seed=3, min_new_tokens=64),
        SamplingParams(max_new_tokens=64, seed=4, top_k=9, repetition_penalty=1.5),
    ]
    prompts = random_prompts(24, engine.vocab_size, seed=9)
    adapters = [None, loaded["all"], loaded["few"], loaded["rank-40"]]

    def ask(engine: Engine) -> list[Client]:
        clients = [
            Client(engine, prompt, kinds[n % 3], adapter=adapters[n % 4])
            for n, prompt in enumerate(prompts)
        ]
        for client in clients:
            client.answer()
        return clients

    small = small_engine(capture=FakeCapture() if is_captured else None)
    answers = ask(small)
    assert [client.ids for client in answers] == [client.ids for client in ask(engine)]
    preempted = [client.sequence.num_preempted for client in answers]
    assert sum(preempted) == small.totals.num_preempted > 5
    # Who came first is never the one that waits.
    assert preempted[0] == 0


def test_no_answer_of_a_mixed_soak_is_wrong_where_the_cache_is_full(small_engine, loaded):
    engine = small_engine()
    num_read, num_wrong = soak(engine, loaded)
    assert num_wrong == 0 < num_read
    assert engine.totals.num_preempted > 0


def test_canceled_ones_leave_the_whole_cache(small_engine):
    engine = small_engine()
    cache = engine.runner.kv_cache
    clients = [Client(engine, [number] * 100) for number in range(3, 23)]
    for number, client in enumerate(clients):
        client.read(number % 3)
        client.cancel()
    for client in clients:
        client.read()
    Client(engine, [5, 6], replace(GREEDY, max_new_tokens=1)).answer()
    assert cache.num_available == cache.tensors.num_pages


def test_prompts_that_come_together_are_read_in_one_pass(new_engine, monkeypatch):
    passes: list[int] = []
    read = ModelRunner.prefill

    def count(runner, chunks):
        passes.append(len(chunks))
        return read(runner, chunks)

    for name in ("FEWEST", "FIRST", "MOST"):
        monkeypatch.setattr(f"src.serving.engine.prefill_queue.{name}", 400)
    engine = new_engine(can_speculate=False)
    monkeypatch.setattr(ModelRunner, "prefill", count)
    clients = [Client(engine, [number] * 20) for number in range(3, 11)]
    for client in clients:
        client.answer()
    assert sum(passes) == len(clients)
    assert max(passes) > 1


def test_a_prompt_is_read_in_pieces_beside_an_answer(engine, new_engine, monkeypatch):
    prompt = random_prompts(1, engine.vocab_size, seed=6)[0] * 200
    alone = Client(engine, prompt[:200]).answer()
    for name in ("FIRST", "MOST"):
        monkeypatch.setattr(f"src.serving.engine.prefill_queue.{name}", 16)
    busy = new_engine(can_speculate=False)
    first = Client(busy, [5, 6, 7], replace(GREEDY, max_new_tokens=200), ignores_end=True)
    first.read(1)
    late = Client(busy, prompt[:200])
    late.read(1)
    # It had a token in each step of the other's reading.
    assert 200 // 16 <= len(first.sequence.output_ids) < 200
    assert late.answer() == alone
    first.cancel()


def test_the_cache_says_how_much_it_holds(engine, new_engine, capsys):
    new_engine()
    assert "KV cache: 0.0 GB, 2,048 tokens\n" in capsys.readouterr().out
    small = new_engine(max_context=64)
    assert small.max_seq_len == 64
    with pytest.raises(UserError, match="prompt: expected fewer than 64 tokens"):
        Client(small, [5] * 64)
    new_engine(max_context=300)
    assert "MAX_CONTEXT without effect: the model's context is 256\n" in capsys.readouterr().out


def test_a_context_that_has_no_room_is_a_smaller_one(
    base_dir, engine, new_engine, monkeypatch, capsys
):
    monkeypatch.setattr("src.serving.cache.budget.SHORTEST_CONTEXT", 64)
    small = new_engine(cache_bytes=cache_bytes(engine, 5))
    assert small.max_seq_len == 160
    assert "context: 160 tokens in place of 256, for which the KV cache has no room" in (
        capsys.readouterr().out
    )
    prompt = [5] * 159
    assert Client(small, prompt).answer() == Client(engine, prompt).answer()[:1]
    with pytest.raises(UserError, match=r"at least 0\.0 MB; found 0\.0 MB, KV_CACHE_GB"):
        new_engine(cache_bytes=cache_bytes(engine, 1))
