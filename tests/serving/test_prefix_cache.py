"""What slots hold is found again, and what was used last stays longest."""

import random
import time

from src.serving.engine.prefix_cache import Move, PrefixCache

ONE, TWO, THREE = ([number * 1000 + n for n in range(20)] for number in (1, 2, 3))


def fill(cache: PrefixCache, slot: int, ids: list[int], *, free: list[int], key=None) -> None:
    _, num_known = cache.place(slot, free, key, ids)
    cache.extend(slot, ids[num_known:])


def test_a_prompt_goes_on_from_the_longest_match_in_any_slot():
    cache = PrefixCache(3)
    fill(cache, 0, ONE[:10], free=[1, 2])
    fill(cache, 1, ONE, free=[2])
    assert cache.place(2, [], None, [*ONE, 7]) == ([Move(1, 2, 20)], 20)


def test_the_last_token_of_a_prompt_is_always_read():
    cache = PrefixCache(1)
    fill(cache, 0, ONE, free=[])
    assert cache.place(0, [], None, ONE) == ([], 19)


def test_another_adapters_tokens_and_forgotten_ones_are_no_match():
    cache = PrefixCache(1)
    fill(cache, 0, ONE, free=[], key="one")
    assert cache.place(0, [], "two", ONE) == ([], 0)
    fill(cache, 0, ONE, free=[], key="one")
    cache.forget(0)
    assert cache.place(0, [], "one", ONE) == ([], 0)


def test_what_a_slot_held_moves_to_the_one_that_was_used_longest_ago():
    cache = PrefixCache(3)
    for slot, ids in enumerate((THREE, ONE, TWO)):
        fill(cache, slot, ids, free=[0, 1, 2])
    moves, _ = cache.place(2, [0, 1], None, [5] * 20)
    assert moves == [Move(2, 0, 20)]


def test_a_match_from_another_slot_counts_as_use():
    """What slot 0 held was asked for again after slot 1 was filled: slot 1 goes first."""
    cache = PrefixCache(3)
    for slot, ids in enumerate((ONE, TWO, THREE)):
        fill(cache, slot, ids, free=[0, 1, 2])
    fill(cache, 2, [*ONE, 7, 8], free=[])
    moves, _ = cache.place(2, [0, 1], None, [5] * 20)
    assert moves == [Move(2, 1, 22)]


def test_a_prompt_is_looked_up_in_a_millisecond():
    """32 slots of a dialogue of 4,096 tokens that differ in the last ones: all answers wait."""
    rng = random.Random(0)
    shared = [rng.randrange(32000) for _ in range(4096)]
    cache = PrefixCache(32)
    for slot in range(32):
        fill(cache, slot, [*shared[:-1], slot], free=[])
    started = time.thread_time()
    for _ in range(20):
        cache.place(0, list(range(32)), None, shared)
    assert (time.thread_time() - started) / 20 < 0.003
