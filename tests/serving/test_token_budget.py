"""A step that reads prompts takes about twice as long as one that does not."""

import pytest

from src.serving.engine.prefill_queue import FEWEST, FIRST, MOST, SLOWDOWN, TokenBudget


@pytest.mark.parametrize("seconds_of_token", [1e-6, 2e-5, 1e-4, 1.0])
@pytest.mark.parametrize("step", [0.001, 0.05])
def test_the_budget_finds_its_size(step: float, seconds_of_token: float):
    budget = TokenBudget()

    def take() -> float:
        """Return what a step with as many tokens as there may be takes."""
        return step + budget.num_tokens * seconds_of_token

    for _ in range(20):
        budget.record(0, step)
    for _ in range(20):
        budget.record(budget.num_tokens, take())
    if FEWEST < budget.num_tokens < MOST:
        assert 0.7 * SLOWDOWN * step < take() < 1.3 * SLOWDOWN * step
    else:
        assert (budget.num_tokens == FEWEST) == (take() > SLOWDOWN * step)


def test_one_slow_step_says_little():
    budget = TokenBudget()
    budget.record(0, 1.0)
    for _ in range(10):
        budget.record(budget.num_tokens, 2.0)
    before = budget.num_tokens
    for num_tokens in (before, FEWEST - 1):
        budget.record(num_tokens, 100.0)
        assert budget.num_tokens == pytest.approx(before, rel=0.2)


def test_what_tokens_took_is_forgotten_far_on_in_a_text():
    """A prompt of which much is known begins there, where each token reads it all."""
    budget = TokenBudget()
    budget.record(0, 1.0)
    position = 0
    for _ in range(20):
        budget.go_on_at(position)
        position += budget.num_tokens
        budget.record(budget.num_tokens, 1.0)
    assert budget.num_tokens == MOST
    budget.go_on_at(0)
    assert budget.num_tokens == MOST
    budget.go_on_at(4000)
    assert budget.num_tokens == FIRST
    budget.record(FIRST, SLOWDOWN)
    assert budget.num_tokens == FIRST
