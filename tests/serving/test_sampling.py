"""The next token follows from scores and settings as the contract says."""

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from src.errors import UserError
from src.serving.sampling import Sampler, SamplingSettings, keep_top

CPU = torch.device("cpu")


def sampler(prompt_ids=(), end_ids=(0,), vocab_size=40, **values) -> Sampler:
    settings = SamplingSettings(**{"repetition_penalty": 1.0, "top_p": 1.0, **values})
    return Sampler(
        settings, prompt_ids=prompt_ids, end_ids=frozenset(end_ids), vocab_size=vocab_size,
        device=CPU,
    )  # fmt: skip


def scores(seed: int = 0) -> torch.Tensor:
    return torch.randn(40, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("top_k", [-1, 0, 1, 5, 40, 99])
@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.5, 0.95, 1.0])
def test_top_k_and_top_p_are_transformers_own(top_k: int, top_p: float):
    for seed in range(20):
        expected = scores(seed)[None]
        if top_k > 0:
            expected = TopKLogitsWarper(top_k)(None, expected)
        if 0 < top_p < 1:
            expected = TopPLogitsWarper(top_p)(None, expected)
        found = keep_top(scores(seed), top_k, top_p)
        if top_p == 0:
            assert found.isfinite().sum() == 1
            assert found.argmax() == expected.argmax()
        else:
            torch.testing.assert_close(found, expected[0])


def test_the_repetition_penalty_is_transformers_own():
    prompt = [3, 5, 5, 9]
    for seed in range(20):
        expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt]), scores(seed)[None])
        drawn = sampler(prompt, temperature=0, repetition_penalty=1.7).draw(scores(seed))
        assert drawn == expected.argmax()


def test_drawn_tokens_count_as_seen():
    greedy = sampler(temperature=0, repetition_penalty=100.0)
    row = torch.arange(40.0)
    assert [greedy.draw(row) for _ in range(3)] == [39, 38, 37]


def test_the_end_is_held_off_until_min_new_tokens():
    greedy = sampler(end_ids=(0, 7), temperature=0, min_new_tokens=2)
    row = torch.zeros(40)
    row[7], row[3] = 9, 5
    assert [greedy.draw(row) for _ in range(3)] == [3, 3, 7]


def test_the_distribution_is_the_softmax_at_its_temperature():
    row = torch.tensor([2.0, 1.0, 0.0, -1.0])
    draws = sampler(vocab_size=4, temperature=0.8, seed=3)
    num_draws = 8000
    counts = torch.bincount(torch.tensor([draws.draw(row) for _ in range(num_draws)]), minlength=4)
    expected = num_draws * (row / 0.8).softmax(0)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 16.3  # 3 degrees of freedom, p = 0.001
    wrong = num_draws * row.softmax(0)
    assert ((counts - wrong) ** 2 / wrong).sum() > 16.3


def test_a_seed_gives_the_same_tokens_and_zero_is_one():
    def draw(seed: int) -> list[int]:
        draws = sampler(temperature=1.0, seed=seed)
        return [draws.draw(scores()) for _ in range(20)]

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    assert len(set(draw(0))) > 3
    assert len(draw(-1)) == len(draw(2**70)) == 20


@pytest.mark.parametrize(
    "values",
    [{"temperature": float("nan")}, {"top_p": 1.5}, {"max_new_tokens": 0}, {"top_k": -2}],
)
def test_values_out_of_bounds_are_refused(values):
    with pytest.raises(UserError, match="expected a number from"):
        sampler(**values)
