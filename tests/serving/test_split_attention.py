"""The kernel that reads a row's cache in parts sees what one call over the row's tokens sees.

It runs in Triton's interpreter, which needs no GPU.
"""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

pytest.importorskip("triton", reason="Triton is not installed")
from src.serving.model.split_attention import attend_split

CAPACITY = 301
LENGTHS = (1, 64, 65, 100, 300)


@pytest.fixture
def cache() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(len(LENGTHS) + 1, CAPACITY, 4, 24)


def attend_alone(query: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    keys, values = tokens.transpose(0, 1).chunk(2)  # (heads, tokens, size) each
    output = scaled_dot_product_attention(query[:, None], keys, values, enable_gqa=True)
    return output[:, 0]


@pytest.mark.parametrize("num_heads", [2, 6])
@pytest.mark.parametrize("window", [None, 37])
@pytest.mark.parametrize("num_parts", [1, 8])
def test_each_row_sees_its_own_tokens(
    cache: torch.Tensor, num_heads: int, window: int | None, num_parts: int
):
    positions = torch.tensor(LENGTHS) - 1
    query = torch.randn(len(LENGTHS), num_heads, 24)
    for row, length in enumerate(LENGTHS):
        # What a row does not hold may be anything.
        cache[row, length:] = float("nan")
        cache[row, : max(0, length - (window or CAPACITY))] = float("nan")
    output = attend_split(query, cache, positions, window, num_parts=num_parts)
    for row, length in enumerate(LENGTHS):
        seen = cache[row, max(0, length - (window or CAPACITY)) : length]
        torch.testing.assert_close(output[row], attend_alone(query[row], seen))


def test_an_idle_row_reads_nothing(cache: torch.Tensor):
    query, positions = torch.randn(2, 2, 24), torch.tensor([CAPACITY - 1, 9])
    cache[0] = float("nan")
    output = attend_split(query, cache, positions, None)
    assert output[0].count_nonzero() == 0
    torch.testing.assert_close(output[1], attend_alone(query[1], cache[1, :10]))
