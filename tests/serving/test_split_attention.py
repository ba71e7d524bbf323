"""The kernel that reads a row's cache in parts sees what one call over the row's tokens sees.

It runs in Triton's interpreter, which needs no GPU.
"""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from src.model.core.attention import attend_in_steps
from src.serving.model.split_attention import attend_split

CAPACITY, BLOCK_SIZE = 320, 16
LENGTHS = (2, 64, 65, 100, 300)


@pytest.fixture
def texts() -> torch.Tensor:
    """Keys and values of the tokens of each row, one after the other."""
    torch.manual_seed(0)
    return torch.randn(len(LENGTHS), CAPACITY, 4, 24)


def in_blocks(texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a cache in which they lie in blocks anywhere, and the table of those."""
    blocks = texts.unflatten(1, (-1, BLOCK_SIZE)).flatten(0, 1)
    order = torch.randperm(len(blocks))
    return blocks[order], order.argsort().view(len(texts), -1)


def attend_alone(query: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    keys, values = tokens.transpose(0, 1).chunk(2)  # (heads, tokens, size) each
    output = scaled_dot_product_attention(query[:, None], keys, values, enable_gqa=True)
    return output[:, 0]


@pytest.mark.parametrize("num_heads", [2, 6])
@pytest.mark.parametrize("window", [None, 37])
@pytest.mark.parametrize("num_parts", [1, 8])
def test_each_row_sees_its_own_tokens(
    texts: torch.Tensor, num_heads: int, window: int | None, num_parts: int
):
    positions = torch.tensor(LENGTHS) - 1
    query = torch.randn(len(LENGTHS), num_heads, 24)
    for row, length in enumerate(LENGTHS):
        # What a row does not hold may be anything.
        texts[row, length:] = float("nan")
        texts[row, : max(0, length - (window or CAPACITY))] = float("nan")
    output = attend_split(query, *in_blocks(texts), positions, window, num_parts=num_parts)
    for row, length in enumerate(LENGTHS):
        seen = texts[row, max(0, length - (window or CAPACITY)) : length]
        torch.testing.assert_close(output[row], attend_alone(query[row], seen))


def test_an_idle_row_reads_nothing(texts: torch.Tensor):
    query, positions = torch.randn(2, 2, 24), torch.tensor([0, 9])
    texts[0] = float("nan")
    output = attend_split(query, *in_blocks(texts), positions, None)
    assert output[0].count_nonzero() == 0
    torch.testing.assert_close(output[1], attend_alone(query[1], texts[1, :10]))


def test_a_sink_takes_its_share_of_every_row(texts: torch.Tensor):
    positions, sinks = torch.tensor([0, 9, 299]), torch.randn(6)
    query = torch.randn(3, 6, 24)
    output = attend_split(query, *in_blocks(texts), positions, None, sinks=sinks)
    assert output[0].count_nonzero() == 0
    for row in (1, 2):
        key, value = texts[row, : positions[row] + 1].transpose(0, 1).chunk(2)
        expected = attend_in_steps(
            None, query[row].view(1, 2, 3, 24), key[None], value[None], None, None, sinks
        )
        torch.testing.assert_close(output[row], expected.view(6, 24))
