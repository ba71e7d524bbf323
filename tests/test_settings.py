"""Every setting of a training has a bound, and what is out of it is named before any work."""

from dataclasses import fields

import pytest

from src.errors import UserError
from src.settings import CHOICES, MAX_RANK, WHOLE_NUMBERS, TrainSettings

REQUIRED = {"base_model": "a", "base_model_dir": "a", "train_data": "a", "train_data_name": "a"}
NAN, INF = float("nan"), float("inf")
NUMBERS = (-1, NAN, INF, -INF, True, "1")
BAD_BY_TYPE = {
    int: (*NUMBERS, 10**30, -(2**63), 1.5),
    float: NUMBERS,
    bool: (2, "yes", 0.5),
    str: ("{prompt}\ud800", "{prompt}" + "x" * 10**6, 1, True),
}
BAD = [
    *(
        (field.name, value)
        for field in fields(TrainSettings)
        for kind, values in BAD_BY_TYPE.items()
        if field.type in (kind, kind | None)
        for value in values
    ),
    *((name, 0) for name in WHOLE_NUMBERS if name not in ("seed", "checkpoint_seconds")),
    *((name, value) for name in CHOICES for value in ("", "other", "LoRA")),
    *((name, 1.1) for name in ("lora_dropout", "warmup_ratio", "prompt_loss_weight")),
    ("learning_rate", 0),
    ("lora_rank", MAX_RANK + 1),
    ("lora_dropout", 1),
    ("resume_from", "run-1\0/step-00000001"),
    ("prompt_template", ""),
    ("prompt_template", "{prompt.__class__}"),
    ("prompt_template", "{ prompt }"),
]


def test_every_setting_is_tried():
    """A setting of a new type needs values here that are refused."""
    # The environment is checked where it is read.
    tried = {name for name, _ in BAD} | {"environment"}
    assert tried == {field.name for field in fields(TrainSettings)}


@pytest.mark.parametrize(("name", "value"), BAD)
def test_values_out_of_bounds_are_named(name: str, value: object):
    with pytest.raises(UserError, match=f"^{name}: expected .*, got") as caught:
        TrainSettings(**{**REQUIRED, name: value})
    assert len(str(caught.value)) < 300


def test_values_at_the_bounds_are_taken():
    bounds = WHOLE_NUMBERS | CHOICES | {"prompt_loss_weight": (0, 1), "warmup_ratio": (0, 1)}
    for name, values in bounds.items():
        for value in values:
            assert getattr(TrainSettings(**{**REQUIRED, name: value}), name) == value
