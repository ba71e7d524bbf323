"""Tokens that were foreseen are read at once, and are those that single steps draw."""

import itertools
import json
import queue
import random
from dataclasses import replace

import pytest

import src.serving.sampling.sampler
from src.serving.engine.engine import Engine
from src.serving.engine.ngram import FIRST_CREDIT, MOST, NgramProposer
from src.serving.engine.prefix_cache import SHORTEST
from src.serving.engine.request import Event, Finished, Sequence, Token
from src.serving.predictor import TextPredictor
from src.serving.sampling.params import SamplingParams
from tests.serving.request import REQUEST

GREEDY = SamplingParams(max_new_tokens=48, temperature=0, repetition_penalty=1.0)
SAMPLING = {
    "greedy": GREEDY,
    "penalty": replace(GREEDY, repetition_penalty=1.02),
    "seeds": replace(GREEDY, temperature=0.05, top_p=0.9, top_k=30, seed=5),
    "min-tokens": replace(GREEDY, min_new_tokens=40),
}


def start(
    engine: Engine, ids: list[int], settings: SamplingParams = GREEDY, **options
) -> tuple[Sequence, "queue.SimpleQueue[Event]"]:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    request = Sequence(list(ids), settings, events.put, **options)
    engine.submit(request)
    return request, events


def read(events: "queue.SimpleQueue[Event]", most: int = 1000) -> list[int | str]:
    """Return the tokens, and at last why there are no more."""
    found: list[int | str] = []
    while len(found) < most:
        event = events.get(timeout=60)
        if isinstance(event, Finished):
            assert event.error is None
            return [*found, event.reason]
        found.append(event.id)
    return found


def answer(engine: Engine, *args, **options) -> list[int | str]:
    return read(start(engine, *args, **options)[1])


def stepwise(engine: Engine, *args, **options) -> list[int | str]:
    """Ask for the same without looking ahead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._scheduler, "_looks_ahead", False)
        request, events = start(engine, *args, **options)
        found = read(events)
    assert request.num_proposed == 0
    return found


def prompts_that_repeat(num: int, vocab_size: int) -> list[list[int]]:
    """Of many lengths, up to the end of the context; every third one is said over and over."""
    rng = random.Random(7)
    prompts = []
    for number in range(num):
        length = rng.choice([1, 3, 40, 120, 230, 253])
        ids = [rng.randrange(3, vocab_size) for _ in range(length)]
        prompts.append((ids[: rng.randint(1, 12)] * 256)[:length] if number % 3 == 0 else ids)
    return prompts


@pytest.mark.parametrize("is_overlapping", [False, True])
@pytest.mark.parametrize("wish", SAMPLING)
def test_tokens_are_those_of_single_steps(engine, loaded, monkeypatch, wish, is_overlapping):
    monkeypatch.setattr(engine._scheduler, "_can_overlap", is_overlapping)
    prompts = prompts_that_repeat(16, engine.vocab_size)
    num_accepted = 0
    for prompt, name in zip(prompts, itertools.cycle([None, *loaded]), strict=False):
        adapter = None if name is None else loaded[name]
        expected = stepwise(engine, prompt, SAMPLING[wish], adapter=adapter)
        request, events = start(engine, prompt, SAMPLING[wish], adapter=adapter)
        assert read(events) == expected, (name, len(prompt))
        assert request.num_accepted <= request.num_proposed
        num_accepted += request.num_accepted
    assert num_accepted > 20


def test_a_proposal_that_is_not_checked_is_noticed(engine, monkeypatch):
    def all_stand(proposed: list[int], drawn: list[int]) -> int:
        drawn[: len(proposed)] = proposed
        return len(proposed)

    prompts = prompts_that_repeat(12, engine.vocab_size)
    expected = [stepwise(engine, prompt) for prompt in prompts]
    monkeypatch.setattr(src.serving.sampling.sampler, "num_accepted", all_stand)
    assert [answer(engine, prompt) for prompt in prompts] != expected


def test_an_answer_is_never_longer_than_asked(engine):
    prompt = [9, 10, 11] * 20
    longest = stepwise(engine, prompt)
    for most in range(1, 24):
        found = answer(engine, prompt, replace(GREEDY, max_new_tokens=most))
        assert found == [*longest[:most], "length"]


def test_logprobs_are_those_of_single_steps(engine):
    def told(*, looks_ahead: bool) -> tuple[list[float], int]:
        engine._scheduler._looks_ahead = looks_ahead
        request, events = start(engine, [9, 10, 11] * 20, num_logprobs=2)
        scores = []
        while isinstance(event := events.get(timeout=60), Token):
            assert event.scores is not None
            scores += [event.scores.own, *(value for _, value in event.scores.best)]
        return scores, request.num_accepted

    expected, none = told(looks_ahead=False)
    found, num_accepted = told(looks_ahead=True)
    assert found == pytest.approx(expected, abs=1e-4)
    assert num_accepted > none == 0


def test_what_was_foreseen_wrongly_is_not_taken_for_known(engine, loaded):
    """The next turn of a dialogue goes on from what the slot holds, also after a cancel."""
    for number, prompt in enumerate(prompts_that_repeat(12, engine.vocab_size)):
        prompt = prompt[:120]
        adapter = list(loaded.values())[number % 3]
        first, events = start(engine, prompt, adapter=adapter)
        if number % 2:
            read(events, most=6)
            engine.cancel(first)
        read(events)
        said = first.ids
        longer = [*prompt, *said, 44, 45]
        second, events = start(engine, longer, adapter=adapter)
        found = read(events)
        num_held = len(prompt) + len(said) - 1
        assert second.num_cached_tokens == (num_held if num_held >= SHORTEST else 0)
        # Another adapter of the same content reads everything anew.
        stranger = replace(adapter, key=f"stranger-{number}")
        assert found == stepwise(engine, longer, adapter=stranger)


def test_company_that_comes_and_goes_changes_nothing(engine, loaded):
    prompts = prompts_that_repeat(12, engine.vocab_size)
    expected = [stepwise(engine, prompt) for prompt in prompts]
    num_accepted = 0
    for prompt, tokens in zip(prompts, expected, strict=True):
        request, events = start(engine, prompt)
        found = read(events, most=10)
        _, other = start(engine, prompt[:9], replace(GREEDY, max_new_tokens=5))
        if not isinstance(found[-1], str):
            found += read(events)
        read(other)
        assert found == tokens
        num_accepted += request.num_accepted
    assert num_accepted > 20


@pytest.mark.parametrize("stop", [None, 20, 37, 60])
def test_a_stop_sequence_among_foreseen_tokens_ends_the_text(base_dir, monkeypatch, stop):
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


def test_text_that_repeats_nothing_is_not_read_ahead():
    lookahead = NgramProposer(range(100))
    assert not any(lookahead.propose(range(100, 100 + n), 50) for n in range(1, 200))


def test_proposals_grow_while_they_stand():
    lookahead, said, sizes = NgramProposer([1, 2, 3, 4, 5]), [1, 2], []
    for _ in range(4):
        proposed = lookahead.propose(said, 50)
        said += proposed
        sizes.append(len(proposed))
        lookahead.settle(len(proposed), len(proposed))
    assert said == ([1, 2, 3, 4, 5] * 20)[: len(said)]
    assert sizes == [3, 7, MOST, MOST]


def test_proposals_that_never_stand_cost_little():
    rng = random.Random(0)
    lookahead, said, num_wrong = NgramProposer([1, 2] * 20), [], 0
    for _ in range(1000):
        proposed = lookahead.propose(said, 50)
        said.append(rng.choice([1, 2]))
        if proposed:
            lookahead.settle(len(proposed), 0)
            num_wrong += 1
    assert 5 < num_wrong < FIRST_CREDIT + 0.02 * 1000
