"""The arithmetic of a token is that of the published models."""

import pytest

from benchmarks.shapes import SHAPES, flops_per_token


@pytest.mark.parametrize(
    ("name", "length", "recomputed", "gigaflops"),
    [
        ("7b", 2048, 0, 28.55),
        ("7b", 2048, 1, 42.12),
        ("7b", 512, 0, 27.14),
        ("13b", 4096, 0, 57.65),
    ],
)
def test_the_arithmetic_of_a_token(name: str, length: int, recomputed: float, gigaflops: float):
    found = flops_per_token(SHAPES[name], lora_rank=16, max_seq_len=length, recomputed=recomputed)
    assert found / 1e9 == pytest.approx(gigaflops, rel=0.01)
