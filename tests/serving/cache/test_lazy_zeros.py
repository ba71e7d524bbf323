"""The key/value cache in blocks that nobody uses costs no memory on a CPU."""

import re
from pathlib import Path

import torch

from src.serving.cache.kv_cache import BLOCK_SIZE, KVCache
from src.serving.cache.layer_groups import group_layers

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
        layers=group_layers([None] * 4), num_pages=8000, num_slots=4, max_seq_len=8192,
        num_key_value_heads=8, head_size=64, dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    layers = [cache.layer(number) for number in range(4)]
    assert sum(layer.nbytes for layer in layers) > 4 * GIGABYTE
    # What was never written reads as zeros: it can be multiplied, and gives a number.
    assert not any(cache.read(0, torch.arange(n, n + 99), 1)[0].any() for n in range(0, 7900, 790))
    assert resident_bytes(layers) < 0.1 * GIGABYTE
    # The measurement would notice.
    layers[1][:256] = 1.0
    assert resident_bytes(layers) > 256 * BLOCK_SIZE * 2 * 8 * 64 * 4 * 0.9
