"""The learning rate rises, then stays or falls to zero."""

import pytest

from src.training.learning_rate import learning_rate_multiplier


def curve(schedule: str, *, num_steps: int = 100, warmup_steps: int = 10) -> list[float]:
    return [
        learning_rate_multiplier(
            step, num_steps=num_steps, warmup_steps=warmup_steps, schedule=schedule
        )
        for step in range(num_steps)
    ]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_warm_up_ends_at_the_peak(schedule: str):
    values = curve(schedule)
    assert values[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert max(values) == values[10] == 1


def test_after_the_warm_up():
    assert set(curve("constant")[10:]) == {1.0}
    linear, cosine = curve("linear")[10:], curve("cosine")[10:]
    assert linear[45] == pytest.approx(0.5)
    assert cosine[45] == pytest.approx(0.5)
    for values in (linear, cosine):
        assert values == sorted(values, reverse=True)
        assert 0 < values[-1] < 0.02


def test_one_step_is_taken_at_the_peak():
    assert curve("cosine", num_steps=1, warmup_steps=1) == [1.0]
    assert curve("linear", num_steps=1, warmup_steps=0) == [1.0]
