"""As many tokens as the memory has room for, or a sentence that says what is missing."""

import random

import pytest
import torch

from src.errors import UserError
from src.serving.cache.budget import CachePlan, adapter_bytes_that_fit, plan_cache
from src.serving.cache.kv_cache import BLOCK_SIZE
from tests.serving.cache.test_block_tables import make_tables

CPU = torch.device("cpu")
FREE = 10 * 10**9


def plan(token_bytes: int, **options) -> CachePlan:
    defaults = {
        "max_seq_len": 4096, "num_slots": 32, "most_held": None, "asked_bytes": None, "free": FREE,
        "device": CPU,
    }  # fmt: skip
    return plan_cache(token_bytes, **{**defaults, **options})


def test_tokens_take_their_share_of_the_free_memory():
    found = plan(500_000)
    assert found.max_seq_len == 4096
    assert 2.9e9 < found.num_bytes <= 3e9
    assert found.num_blocks * BLOCK_SIZE * 500_000 == found.num_bytes
    assert adapter_bytes_that_fit(FREE) == 1.5 * 10**9


def test_no_more_is_taken_than_all_slots_can_use():
    assert plan(1).num_blocks == 32 * 4096 // BLOCK_SIZE


def test_what_is_asked_for_is_taken():
    assert plan(500_000, asked_bytes=5e9).description == "KV cache: 5.0 GB, 9,984 tokens"
    with pytest.raises(UserError, match=r"^KV_CACHE_GB: expected at most 10\.00, .*; found 10\.1"):
        plan(500_000, asked_bytes=10.1e9)


def test_a_context_that_fits_not_once_is_a_smaller_one():
    assert plan(1_000_000).max_seq_len == 3_000_000_000 // 1_000_000 // BLOCK_SIZE * BLOCK_SIZE
    # What a window leaves behind needs no room.
    assert plan(1_000_000, most_held=2000).max_seq_len == 4096
    with pytest.raises(UserError, match=r"at least 5\.1 GB; found 3\.0 GB, 30% of the memory"):
        plan(20_000_000)


def test_mixed_lengths_fill_the_cache():
    """Of a context of 32,768 tokens that have 1,000 on average, growing until there is no room."""
    rng, max_seq_len, num_blocks = random.Random(0), 32768, 3000
    tables = make_tables(num_blocks=num_blocks, num_slots=300, max_seq_len=max_seq_len)
    total = 0
    for slot in range(300):
        length = min(int(rng.expovariate(1 / 1000)) + 1, max_seq_len)
        tables.place(slot, None, [slot])
        if not tables.grow(slot, length):
            break
        total += length
    assert total > 0.95 * num_blocks * BLOCK_SIZE
