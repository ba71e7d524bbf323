"""The precision is the fastest of the device, or what is asked for."""

import pytest
import torch

from src.environment import DTYPES
from src.errors import UserError
from src.model.precision import choose_dtype, dtype_name

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def with_bfloat16(monkeypatch):
    """Return a function that says whether CPU and GPU have instructions for bfloat16."""

    def say(has_it: bool) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_it)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_it)

    return say


@pytest.mark.parametrize(
    ("device", "has_it", "chosen"),
    [
        (CPU, True, torch.bfloat16),
        (CPU, False, torch.float32),
        (GPU, True, torch.bfloat16),
        (GPU, False, torch.float16),
    ],
)
def test_the_precision_is_the_fastest_of_the_device(with_bfloat16, device, has_it, chosen):
    with_bfloat16(has_it)
    assert choose_dtype(device) == chosen


@pytest.mark.parametrize("asked", DTYPES)
def test_what_is_asked_for_is_taken(with_bfloat16, asked: str):
    for has_it in (True, False):
        with_bfloat16(has_it)
        assert dtype_name(choose_dtype(CPU, asked)) == asked
    if asked != "bfloat16":
        assert dtype_name(choose_dtype(GPU, asked)) == asked


def test_a_gpu_without_bfloat16_is_not_made_to_emulate_it(with_bfloat16):
    with_bfloat16(False)
    with pytest.raises(UserError, match=r"^DTYPE: expected float16 or float32 on this GPU, found"):
        choose_dtype(GPU, "bfloat16")
