"""As many requests at once as the memory has room for, or a sentence that says what is missing."""

import pytest
import torch

import src.serving.engine.kv_budget
from src.errors import UserError
from src.serving.engine.kv_budget import adapter_bytes_that_fit, num_slots_that_fit

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _ten_gigabytes_are_free(monkeypatch):
    monkeypatch.setattr(src.serving.engine.kv_budget, "free_memory", lambda: 10 * 10**9)


@pytest.mark.parametrize(("gigabytes", "num_slots"), [(7, 1), (3.4, 2), (0.1, 32)])
def test_slots_take_their_share_of_the_free_memory(gigabytes: float, num_slots: int):
    assert num_slots_that_fit(int(gigabytes * 10**9), 32, CPU) == num_slots
    assert adapter_bytes_that_fit(CPU) == 1.5 * 10**9


def test_a_context_that_fits_not_once_is_refused_with_what_it_needs():
    with pytest.raises(
        UserError, match=r"one request of full length, 7\.10 GB; found 7\.00 GB, 70%"
    ):
        num_slots_that_fit(int(7.1 * 10**9), 32, CPU)
