"""The next token follows from scores and settings as the contract says."""

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from src.errors import UserError
from src.serving.noise import Noise, noise_key
from src.serving.sampling import Sampler, SamplingParams, keep_top

CPU = torch.device("cpu")


def settings(**values) -> SamplingParams:
    return SamplingParams(**{"repetition_penalty": 1.0, "top_p": 1.0, **values})


class Draws:
    """One request alone in a slot of a sampler."""

    def __init__(self, prompt_ids=(), end_ids=(0,), vocab_size=40, slot=0, **values) -> None:
        self.sampler = Sampler(num_slots=3, vocab_size=vocab_size, end_ids=end_ids, device=CPU)
        self.sampler.set(slot, settings(**values), prompt_ids=prompt_ids)
        self.rows, self.position = slice(slot, slot + 1), len(prompt_ids)

    def draw(self, row: torch.Tensor) -> int:
        token = self.sampler.draw(
            row[None],
            torch.tensor([self.position]),
            rows=self.rows,
            features=self.sampler.features(self.rows),
        )
        self.position += 1
        return int(token[0])


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
        k = torch.tensor([min(top_k, 40)]) if top_k > 0 else None
        (found,) = keep_top(scores(seed)[None], k, torch.tensor([top_p]))
        if top_p == 0:
            assert found.isfinite().sum() == 1
            assert found.argmax() == expected.argmax()
        else:
            torch.testing.assert_close(found, expected[0])


def test_the_repetition_penalty_is_transformers_own():
    prompt = [3, 5, 5, 9]
    for seed in range(20):
        expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt]), scores(seed)[None])
        drawn = Draws(prompt, temperature=0, repetition_penalty=1.7).draw(scores(seed))
        assert drawn == expected.argmax()


def test_drawn_tokens_count_as_seen():
    greedy = Draws(temperature=0, repetition_penalty=100.0)
    row = torch.arange(40.0)
    assert [greedy.draw(row) for _ in range(3)] == [39, 38, 37]


def test_the_end_is_held_off_until_min_new_tokens():
    greedy = Draws(end_ids=(0, 7), temperature=0, min_new_tokens=2)
    row = torch.zeros(40)
    row[7], row[3] = 9, 5
    assert [greedy.draw(row) for _ in range(3)] == [3, 3, 7]


def test_the_distribution_is_the_softmax_at_its_temperature():
    row = torch.tensor([2.0, 1.0, 0.0, -1.0])
    draws = Draws(vocab_size=4, temperature=0.8, seed=3)
    num_draws = 8000
    counts = torch.bincount(torch.tensor([draws.draw(row) for _ in range(num_draws)]), minlength=4)
    expected = num_draws * (row / 0.8).softmax(0)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 16.3  # 3 degrees of freedom, p = 0.001
    wrong = num_draws * row.softmax(0)
    assert ((counts - wrong) ** 2 / wrong).sum() > 16.3


def test_a_seed_gives_the_same_tokens_and_zero_is_one():
    def draw(seed: int) -> list[int]:
        draws = Draws(temperature=1.0, seed=seed)
        return [draws.draw(scores()) for _ in range(20)]

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    assert len(set(draw(0))) > 3
    assert len(draw(-1)) == len(draw(2**70)) == 20


def test_neighbours_and_the_slot_change_no_draw():
    alone = Draws(vocab_size=40, temperature=1.3, top_k=20, top_p=0.9, seed=5, prompt_ids=[3, 4])
    expected = [alone.draw(scores(number)) for number in range(50)]
    batch = Sampler(num_slots=3, vocab_size=40, end_ids=(0,), device=CPU)
    batch.set(0, settings(temperature=0.5, top_p=0.3, seed=9), prompt_ids=[1])
    batch.set(1, settings(temperature=1.3, top_k=20, top_p=0.9, seed=5), prompt_ids=[3, 4])
    batch.set(2, settings(temperature=0, repetition_penalty=1.5), prompt_ids=[7])
    everyone = slice(0, 3)
    found = []
    for number in range(50):
        rows = torch.stack([scores(number + 100), scores(number), scores(number + 200)])
        drawn = batch.draw(
            rows,
            torch.tensor([number + 1, number + 2, number + 1]),
            rows=everyone,
            features=batch.features(everyone),
        )
        found.append(int(drawn[1]))
    assert found == expected
    assert len(set(found)) > 5


def test_the_noise_of_rows_positions_and_tokens_is_independent():
    """Uniform in every cell of position pairs, so that no draw tells of the next one."""
    noise = Noise(64, CPU)
    keys = torch.tensor([noise_key(seed) for seed in range(400)])
    cells = torch.zeros(8, 8)
    for position in range(0, 20, 2):
        one = noise.gumbel(keys, torch.full((400,), position))
        two = noise.gumbel(keys, torch.full((400,), position + 1))
        ranks = [((-(-x).exp()).exp() * 8).long().clamp(max=7).flatten() for x in (one, two)]
        cells += torch.bincount(ranks[0] * 8 + ranks[1], minlength=64).view(8, 8)
    expected = cells.sum() / 64
    assert ((cells - expected) ** 2 / expected).sum() < 103.4  # 63 degrees, p = 0.001


@pytest.mark.parametrize(
    "values",
    [{"temperature": float("nan")}, {"top_p": 1.5}, {"max_new_tokens": 0}, {"top_k": -2}],
)
def test_values_out_of_bounds_are_refused(values):
    with pytest.raises(UserError, match="expected a number from"):
        settings(**values)


def test_rows_without_a_token_are_never_drawn():
    sampler = Sampler(num_slots=1, vocab_size=8, end_ids=(0,), device=CPU, unused_ids=(5, 7))
    for params in (
        SamplingParams(temperature=0),
        SamplingParams(temperature=5, top_p=1, repetition_penalty=0.1),
    ):
        sampler.set(0, params, prompt_ids=[1])
        features = sampler.features(slice(1))
        for position in range(200):
            logits = torch.tensor([[0.0, 0, 0, 0, 0, 9, 0, 9]])
            sampler.hide_unused_(logits)
            (token,) = sampler.draw(
                logits, torch.tensor([position]), rows=slice(1), features=features
            ).tolist()
            assert token not in (5, 7)
