"""The key/value cache of slots that nobody uses costs no memory on a CPU."""

import re
from pathlib import Path

import torch

from src.serving.model.attention import KVCache

GIGABYTE = 10**9


def resident_bytes(tensors: list[torch.Tensor]) -> int:
    """Return what the kernel holds in memory of the mappings in which tensors lie."""
    pattern = r"^([0-9a-f]+)-([0-9a-f]+) .*\n(?:[A-Z]\w+: .*\n)*?Rss: +(\d+) kB"
    mappings = re.findall(pattern, Path("/proc/self/smaps").read_text(), re.MULTILINE)
    return sum(
        int(kilobytes) * 1024
        for begin, end, kilobytes in mappings
        if any(int(begin, 16) <= tensor.data_ptr() < int(end, 16) for tensor in tensors)
    )


def test_a_cache_takes_memory_as_it_is_written_and_not_when_it_is_read():
    cache = KVCache(
        num_layers=4, num_slots=32, num_key_value_heads=8, head_size=64, capacity=8193,
        dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    layers = [cache.layer(number) for number in range(4)]
    assert sum(layer.nbytes for layer in layers) > 4 * GIGABYTE
    # What was never written reads as zeros: it can be multiplied, and gives a number.
    keys, _ = cache.read(slice(32), slice(8193))
    assert not keys[0].any()
    assert resident_bytes(layers) < 0.1 * GIGABYTE
    # The measurement would notice.
    layers[1][0] = 1.0
    assert resident_bytes(layers) > 8193 * 2 * 8 * 64 * 4 * 0.9
