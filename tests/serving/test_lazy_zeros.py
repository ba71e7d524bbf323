"""The key/value cache of slots that nobody uses costs no memory on a CPU."""

import torch

from src.host_memory import process_memory
from src.serving.model.attention import KVCache

GIGABYTE = 10**9


def test_a_cache_takes_memory_as_it_is_written_and_not_when_it_is_read():
    before = process_memory()
    cache = KVCache(
        num_layers=4, num_slots=32, num_key_value_heads=8, head_size=64, capacity=8193,
        dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    num_bytes = sum(cache.layer(number).nbytes for number in range(4))
    assert num_bytes > 4 * GIGABYTE
    # What was never written reads as zeros: it can be multiplied, and gives a number.
    keys, _ = cache.read(slice(32), slice(8193))
    assert not keys[0].any()
    assert process_memory() - before < 0.1 * GIGABYTE
    # The measurement would notice.
    cache.layer(1)[0] = 1.0
    assert process_memory() - before > 8193 * 2 * 8 * 64 * 4 * 0.9
