"""As many tokens as the memory has room for, or a sentence that says what is missing."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from src.errors import UserError
from src.serving.cache.budget import CachePlan, adapter_bytes_that_fit, plan_cache
from src.serving.cache.kv_cache import BLOCK_SIZE
from src.serving.cache.layer_groups import group_layers
from tests.serving.cache.test_block_tables import make_tables

CPU = torch.device("cpu")
FREE = 10 * 10**9


def plan(layer_bytes: int, windows: Sequence[int | None] = (None,), **options: Any) -> CachePlan:
    defaults = {
        "max_seq_len": 4096, "num_slots": 32, "most_read": 1000, "asked_bytes": None, "free": FREE,
        "device": CPU,
    }  # fmt: skip
    return plan_cache(group_layers(windows), layer_bytes, **{**defaults, **options})


def test_tokens_take_their_share_of_the_free_memory():
    found = plan(500_000)
    assert found.max_seq_len == 4096
    assert 2.9e9 < found.num_bytes <= 3e9
    assert found.num_tokens * 500_000 == found.num_bytes
    assert adapter_bytes_that_fit(FREE) == 1.5 * 10**9


def test_no_more_is_taken_than_all_slots_can_use():
    found = plan(1)
    assert found.num_pages == 32 * 4096 // BLOCK_SIZE
    assert found.num_bytes == found.num_tokens == 32 * 4096


def test_what_is_asked_for_is_taken():
    assert plan(500_000, asked_bytes=5e9).description == "KV cache: 5.0 GB, 9,984 tokens"
    with pytest.raises(UserError, match=r"^KV_CACHE_GB: expected at most 10\.00, .*; found 10\.1"):
        plan(500_000, asked_bytes=10.1e9)


def test_a_context_that_fits_not_once_is_a_smaller_one():
    assert plan(1_000_000).max_seq_len == 3_000_000_000 // 1_000_000 // BLOCK_SIZE * BLOCK_SIZE
    # What a window leaves behind needs no room.
    assert plan(1_000_000, [1000]).max_seq_len == 4096
    with pytest.raises(UserError, match=r"at least 5\.1 GB; found 3\.0 GB, 30% of the memory"):
        plan(20_000_000)


def test_mixed_lengths_fill_the_cache():
    """Of a context of 32,768 tokens that have 1,000 on average, growing until there is no room."""
    rng, max_seq_len, num_blocks = random.Random(0), 32768, 3000
    tables = make_tables(num_pages=num_blocks, num_slots=300, max_seq_len=max_seq_len)
    total = 0
    for slot in range(300):
        length = min(int(rng.expovariate(1 / 1000)) + 1, max_seq_len)
        tables.place(slot, None, [slot])
        if not tables.grow(slot, length):
            break
        total += length
    assert total > 0.95 * num_blocks * BLOCK_SIZE


GEMMA_3 = [*[512] * 5, None] * 4 + [512] * 2
"""The windows of Gemma 3 1B, whose layers hold a key and a value of 256 numbers in 16 bits."""


def test_windowed_layers_leave_their_memory_to_the_others():
    """At a context of 32,768 tokens, of which 4 are held in the same bytes without windows."""
    options = {"max_seq_len": 32768, "asked_bytes": 26 * 1024 * 4 * 32768, "most_read": 4096}
    plain = plan(1024, [None] * 26, **options)
    found = plan(1024, GEMMA_3, **options)
    assert found.num_bytes <= plain.num_bytes == options["asked_bytes"]
    assert plain.num_tokens == 4 * 32768
    assert found.num_tokens > 5 * plain.num_tokens
    # As many tokens in slots that hold what they see and the largest piece of one prompt.
    layers = group_layers(GEMMA_3)
    full, windowed = sorted(layers.groups, key=lambda group: group.num_pages)
    assert (full.window, windowed.window) == (None, 512)
    num_held = 31 * windowed.most_blocks(32768, 1) + windowed.most_blocks(32768, 4096)
    num_pages = full.num_pages * found.num_tokens // BLOCK_SIZE + windowed.num_pages * num_held
    assert found.num_pages - layers.num_tables < num_pages <= found.num_pages


def test_a_context_is_served_of_which_windowed_layers_have_no_room_for_all():
    options = {"max_seq_len": 32768, "most_read": 4096}
    plain = plan(1024, [None] * 26, asked_bytes=26 * 1024 * 10000, **options)
    found = plan(1024, GEMMA_3, asked_bytes=26 * 1024 * 10000, **options)
    assert plain.max_seq_len == 9984
    assert found.max_seq_len == 32768


def test_little_of_a_page_stays_empty():
    for num_layers, windows in ((26, GEMMA_3), (62, [*[1024] * 5, None] * 10 + [1024] * 2)):
        layers = group_layers(windows)
        assert len(set(layers.places)) == len(windows) == num_layers
        assert layers.num_tables * layers.layers_of_page <= num_layers * 17 / 16
    assert group_layers([None] * 32).num_tables == group_layers([512] * 32).num_tables == 1
    assert group_layers([512, None] * 13).layers_of_page == 13
