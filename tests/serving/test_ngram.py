"""Speculated tokens are verified at once, and those that are kept are what single steps draw."""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import src.serving.sampling
from src.serving.cache.prefix_index import SHORTEST
from src.serving.engine.engine import Engine
from src.serving.engine.ngram import FIRST_CREDIT, MOST, NgramProposer
from src.serving.engine.request import Finished
from src.serving.predictor import TextPredictor
from src.serving.sampling import SamplingParams
from tests.serving.clients import Client
from tests.serving.fake_graph import FakeCapture
from tests.serving.request import REQUEST

GREEDY = SamplingParams(max_new_tokens=48, temperature=0, repetition_penalty=1.0)
SAMPLING = {
    "greedy": GREEDY,
    "penalty": replace(GREEDY, repetition_penalty=1.02),
    "seeds": replace(GREEDY, temperature=0.05, top_p=0.9, top_k=30, seed=5),
    "min-tokens": replace(GREEDY, min_new_tokens=40),
}


@pytest.fixture(scope="module")
def plain_engine(base_dir: Path) -> Iterator[Engine]:
    """An engine that makes single steps."""
    engine = Engine(base_dir, max_slots=8, max_adapters=4, dtype="float32", can_speculate=False)
    yield engine
    engine.close()


def answer(engine: Engine, ids: list[int], params: SamplingParams = GREEDY, **options) -> list[int]:
    return Client(engine, ids, params, **options).answer()


def prompts_that_repeat(num: int, vocab_size: int) -> list[list[int]]:
    """Of many lengths, up to the end of the context; every third one is said over and over."""
    rng = random.Random(7)
    prompts = []
    for number in range(num):
        length = rng.choice([1, 3, 40, 120, 230, 253])
        ids = [rng.randrange(3, vocab_size) for _ in range(length)]
        prompts.append((ids[: rng.randint(1, 12)] * 256)[:length] if number % 3 == 0 else ids)
    return prompts


@pytest.mark.parametrize("is_captured", [False, True])
@pytest.mark.parametrize("kind", SAMPLING)
def test_tokens_are_those_of_single_steps(new_engine, plain_engine, loaded, kind, is_captured):
    """Captured steps overlap with the handing out of the tokens before."""
    engine = new_engine(can_speculate=True, capture=FakeCapture() if is_captured else None)
    prompts = prompts_that_repeat(16, engine.vocab_size)
    num_accepted = 0
    for prompt, name in zip(prompts, itertools.cycle([None, *loaded]), strict=False):
        adapter = None if name is None else loaded[name]
        expected = answer(plain_engine, prompt, SAMPLING[kind], adapter=adapter)
        client = Client(engine, prompt, SAMPLING[kind], adapter=adapter)
        assert client.answer() == expected, (name, len(prompt))
        assert client.sequence.num_accepted <= client.sequence.num_proposed
        num_accepted += client.sequence.num_accepted
    assert num_accepted > 10


def test_a_proposal_that_is_not_checked_is_noticed(engine, plain_engine, monkeypatch):
    def accept_all(proposed: list[int], drawn: list[int]) -> int:
        drawn[: len(proposed)] = proposed
        return len(proposed)

    prompts = prompts_that_repeat(12, engine.vocab_size)
    expected = [answer(plain_engine, prompt) for prompt in prompts]
    monkeypatch.setattr(src.serving.sampling, "num_accepted", accept_all)
    assert [answer(engine, prompt) for prompt in prompts] != expected


def test_an_answer_is_never_longer_than_asked(engine, plain_engine):
    prompt = [9, 10, 11] * 20
    longest = answer(plain_engine, prompt)
    for most in range(1, 24):
        client = Client(engine, prompt, replace(GREEDY, max_new_tokens=most))
        assert client.answer() == longest[:most]
        assert client.end == Finished("length")


def test_logprobs_are_those_of_single_steps(engine, plain_engine):
    def logprobs(engine: Engine) -> tuple[list[float | None], int]:
        client = Client(engine, [9, 10, 11] * 20, GREEDY, num_logprobs=2)
        client.answer()
        found = [(token.logprob, *(value for _, value in token.best)) for token in client.tokens]
        return list(itertools.chain(*found)), client.sequence.num_accepted

    expected, none = logprobs(plain_engine)
    found, num_accepted = logprobs(engine)
    assert found == pytest.approx(expected, abs=1e-4)
    assert num_accepted > none == 0


def test_rejected_tokens_are_not_taken_for_known(engine, plain_engine, loaded):
    """The next turn of a dialogue goes on from what the slot holds, also after a cancel."""
    for number, prompt in enumerate(prompts_that_repeat(12, engine.vocab_size)):
        prompt = prompt[:120]
        adapter = list(loaded.values())[number % 3]
        first = Client(engine, prompt, GREEDY, adapter=adapter)
        if number % 2:
            first.read(6)
            first.cancel()
        said = first.answer()
        longer = [*prompt, *said, 44, 45]
        second = Client(engine, longer, GREEDY, adapter=adapter)
        found = second.answer()
        num_held = len(prompt) + len(said) - 1
        assert second.sequence.num_cached_tokens == (num_held if num_held >= SHORTEST else 0)
        # Another adapter of the same content reads everything anew.
        stranger = replace(adapter, key=f"stranger-{number}")
        assert found == answer(plain_engine, longer, adapter=stranger)


def test_others_that_come_and_go_change_nothing(engine, plain_engine):
    prompts = prompts_that_repeat(12, engine.vocab_size)
    expected = [answer(plain_engine, prompt) for prompt in prompts]
    num_accepted = 0
    for prompt, tokens in zip(prompts, expected, strict=True):
        client = Client(engine, prompt, GREEDY)
        client.read(10)
        other = Client(engine, prompt[:9], replace(GREEDY, max_new_tokens=5))
        assert client.answer() == tokens
        other.answer()
        num_accepted += client.sequence.num_accepted
    assert num_accepted > 10


@pytest.mark.parametrize("stop", [None, 20, 37, 60])
def test_a_stop_sequence_among_accepted_tokens_ends_the_text(base_dir, monkeypatch, stop):
    monkeypatch.setenv("BASE_MODEL", str(base_dir))
    texts, counts = [], []
    for switch in ("0", "1"):
        monkeypatch.setenv("LOOK_AHEAD", switch)
        predictor = TextPredictor(None)
        asked = {**REQUEST, "prompt": "It is red. " * 12, "max_new_tokens": 100}
        metrics: dict[str, int] = {}
        whole = "".join(predictor.stream(asked, record_metric=metrics.__setitem__))
        if stop is not None:
            asked["stop_sequences"] = json.dumps([whole[stop : stop + 3]])
        texts.append("".join(predictor.stream(asked, record_metric=metrics.__setitem__)))
        counts.append(metrics["accepted_token_count"])
        if stop is not None:
            assert texts[-1] == whole.partition(whole[stop : stop + 3])[0]
    assert texts[0] == texts[1] != ""
    assert counts[0] == 0 < counts[1]


def test_nothing_is_proposed_where_the_text_repeats_nothing():
    proposer = NgramProposer(range(100))
    assert not any(proposer.propose(range(100, 100 + n), 50) for n in range(1, 200))


def test_proposals_grow_while_they_are_accepted():
    proposer, said, sizes = NgramProposer([1, 2, 3, 4, 5]), [1, 2], []
    for _ in range(4):
        proposed = proposer.propose(said, 50)
        said += proposed
        sizes.append(len(proposed))
        proposer.update(len(proposed), len(proposed))
    assert said == ([1, 2, 3, 4, 5] * 20)[: len(said)]
    assert sizes == [3, 7, MOST, MOST]


def test_proposals_that_are_never_accepted_cost_little():
    rng = random.Random(0)
    proposer, said, num_wrong = NgramProposer([1, 2] * 20), [], 0
    for _ in range(1000):
        proposed = proposer.propose(said, 50)
        said.append(rng.choice([1, 2]))
        if proposed:
            proposer.update(len(proposed), 0)
            num_wrong += 1
    assert 5 < num_wrong < FIRST_CREDIT + 0.02 * 1000
