"""Every setting of a training has a bound, and what is out of it is named before any work."""

import pytest

from src.errors import UserError
from src.settings import LIMITS, TEXTS, TrainSettings

REQUIRED = {"base_model": "a", "base_model_dir": "a", "train_data": "a", "train_data_name": "a"}
NAN, INF = float("nan"), float("inf")
BAD = [
    *((name, value) for name in LIMITS for value in (-1, 10**30, -(2**63))),
    *((name, 0) for name in LIMITS if name != "seed"),
    *((name, value) for name in TEXTS for value in ("{prompt}\ud800", "{prompt}" + "x" * 10**6)),
    *(("learning_rate", value) for value in (0, -1, NAN, INF, -INF)),
    *((name, value) for name in ("lora_dropout", "warmup_ratio", "prompt_loss_weight")
      for value in (-0.1, 1.1, NAN, INF)),
    ("lora_dropout", 1),
    ("resume_from", "run-1\0/step-00000001"),
    ("prompt_template", ""),
    ("prompt_template", "{prompt.__class__}"),
    ("prompt_template", "{ prompt }"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_values_out_of_bounds_are_named(name: str, value: object):
    with pytest.raises(UserError, match=f"^{name}: expected .*, got") as caught:
        TrainSettings(**{**REQUIRED, name: value})
    assert len(str(caught.value)) < 300


def test_values_at_the_bounds_are_taken():
    for name, (lowest, highest) in LIMITS.items():
        for value in (lowest, highest):
            assert getattr(TrainSettings(**{**REQUIRED, name: value}), name) == value
