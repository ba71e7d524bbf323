"""A slot reads the keys of its own tokens, whoever else took, shared and released blocks before."""

import random
import time
from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.serving.cache.block_tables import BlockTables
from src.serving.cache.kv_cache import BLOCK_SIZE, EMPTY, FIRST_BLOCK, KVCache, num_blocks_of

MAX_SEQ_LEN, NUM_SLOTS, NUM_BLOCKS = 5 * BLOCK_SIZE, 4, 12


def make_tables(
    num_blocks: int = NUM_BLOCKS, num_slots: int = NUM_SLOTS, max_seq_len: int = MAX_SEQ_LEN,
    window: int | None = None,
) -> BlockTables:  # fmt: skip
    cache = KVCache(
        num_layers=1, num_blocks=num_blocks, num_slots=num_slots, max_seq_len=max_seq_len,
        num_key_value_heads=1, head_size=1, dtype=torch.float64, device=torch.device("cpu"),
    )  # fmt: skip
    return BlockTables(cache, window=window)


class Company:
    """Slots that write for each token what only its whole past can give, and check what they read.

    It holds what it checks against: which tokens each slot has written.
    """

    def __init__(self, **options) -> None:
        self.tables = make_tables(**options)
        self.cache = self.tables.tensors
        self.texts: dict[int, tuple[str | None, list[int]]] = {}

    def place(self, slot: int, key: str | None, ids: list[int]) -> int:
        num_known = self.tables.place(slot, key, ids)
        self.texts[slot] = key, ids[:num_known]
        self.check()
        return num_known

    def write(self, slot: int, ids: list[int], *, is_learned: bool = True) -> bool:
        key, known = self.texts[slot]
        if not self.tables.grow(slot, len(known) + len(ids), len(known)):
            return False
        for token in ids:
            known.append(token)
            place = self.cache.place(slot, len(known) - 1)
            self.cache.places(0)[place] = meaning(key, known)
        if is_learned:
            self.tables.learn(slot, ids)
        self.check()
        return True

    def release(self, slot: int, *, is_valid: bool = True) -> None:
        self.tables.release(slot, is_valid=is_valid)
        del self.texts[slot]
        self.check()

    def check(self) -> None:
        """Every token is where its slot reads it, and each block is there once."""
        users: Counter[int] = Counter()
        for slot, (key, ids) in self.texts.items():
            held = self.cache.held[slot]
            assert self.cache.tables[slot, : len(held)].tolist() == held or not held
            users.update(block for block in held if block != EMPTY)
            for position in range(len(ids)):
                if held[position // BLOCK_SIZE] == EMPTY:
                    continue
                place = self.cache.place(slot, position)
                assert self.cache.places(0)[place, 0] == meaning(key, ids[: position + 1])
        pool = self.tables._pool
        assert users == +pool._num_users
        unused = [*pool._free, *pool._idle]
        blocks = range(FIRST_BLOCK, FIRST_BLOCK + self.cache.num_blocks)
        assert sorted([*unused, *users]) == list(blocks)
        assert all(block in self.tables._index for block in pool._idle)
        assert not any(block in self.tables._index for block in pool._free)


def meaning(key: str | None, ids: list[int]) -> float:
    return float(hash((key, tuple(ids))) % 2**50)


LENGTHS = st.integers(1, 2 * BLOCK_SIZE + 3)
ACTIONS = st.lists(
    st.tuples(
        st.integers(0, NUM_SLOTS - 1), st.sampled_from([None, "one"]), st.integers(0, 3), LENGTHS
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(ACTIONS, st.sampled_from([None, 40]), st.integers(0, 2**16))
def test_no_block_is_lost_or_owned_twice_and_every_token_is_found(actions, window, seed):
    """Texts of three tokens, so that they share beginnings of all lengths."""
    rng, company = random.Random(seed), Company(window=window)
    for slot, key, kind, length in actions:
        ids = [rng.choice([5, 5, 5, 5, 5, 6]) for _ in range(length)]
        if slot not in company.texts:
            num_known = company.place(slot, key, ids)
            assert num_known < len(ids)
            company.write(slot, ids[num_known:])
        elif kind == 0:
            company.release(slot, is_valid=length % 5 > 0)
        elif len(company.texts[slot][1]) + length <= MAX_SEQ_LEN:
            company.write(slot, ids)
    for slot in list(company.texts):
        company.release(slot)
    assert company.tables.num_available == NUM_BLOCKS


def test_a_known_beginning_is_found_exactly_to_the_token():
    for length in (1, 7, 8, 31, 32, 33, 64, 100):
        company, ids = Company(), list(range(100, 100 + length))
        assert company.place(0, None, [*ids, 1]) == 0
        company.write(0, [*ids, 1])
        company.release(0)
        found = company.place(1, None, [*ids, 2, 3])
        assert found == (length if length >= 8 else 0)
        # The last token is read again: its scores are wanted.
        company.release(1)
        assert company.place(1, None, ids) == (length - 1 if length > 8 else 0)


def test_a_beginning_is_shared_without_a_copy_while_its_first_user_runs():
    company, ids = Company(), list(range(2 * BLOCK_SIZE + 5))
    company.place(0, None, ids)
    company.write(0, ids)
    assert company.place(1, None, [*ids, 1]) == len(ids)
    assert company.cache.held[0][:2] == company.cache.held[1][:2]
    assert company.cache.held[0][2] != company.cache.held[1][2]
    assert company.write(0, [7] * 40)
    assert company.write(1, [8] * 40)


def test_another_adapters_tokens_and_invalid_ones_are_not_found():
    company, ids = Company(), list(range(50))
    company.place(0, "one", ids)
    company.write(0, ids)
    assert company.place(1, "two", ids) == company.place(2, None, ids) == 0
    company.release(0, is_valid=False)
    assert company.place(0, "one", ids) == 0


def test_what_was_used_longest_ago_goes_first():
    company = Company()
    texts = [[number] * 3 * BLOCK_SIZE for number in (1, 2, 3)]
    for ids in texts:
        company.place(0, None, ids)
        company.write(0, ids)
        company.release(0)
    assert company.place(0, None, [*texts[0], 9]) == len(texts[0])
    company.release(0)
    company.place(1, None, [9] * MAX_SEQ_LEN)
    company.write(1, [9] * MAX_SEQ_LEN)
    kept = [company.tables.place(2, None, [*ids, 8]) // BLOCK_SIZE for ids in texts[:1]]
    assert kept == [3]
    company.tables.release(2, is_valid=True)
    assert company.tables.place(2, None, [*texts[1], 8]) < len(texts[1])


def test_a_window_gives_blocks_back():
    company = Company(window=20, max_seq_len=1000)
    company.place(0, None, [1] * 10)
    for start in range(0, 900, 10):
        assert company.write(0, list(range(start, start + 10)))
        assert NUM_BLOCKS - company.tables.num_available <= num_blocks_of(30) + 1


def test_what_was_no_number_is_cleared_before_others_hold_it():
    company = Company()
    company.place(0, None, [1] * 40)
    company.write(0, [1] * 40)
    company.cache.places(0)[company.cache.place(0, 39)] = float("nan")
    company.release(0, is_valid=False)
    for slot in range(NUM_SLOTS - 1):
        company.place(slot, None, [2, 3, slot] * 11)
        company.write(slot, [2, 3, slot] * 11)
    held = [block for blocks in company.cache.held for block in blocks]
    assert company.cache.layer(0)[held].isfinite().all()


def test_there_is_room_for_what_others_were_promised():
    company = Company()
    assert company.tables.has_room(None, [1] * MAX_SEQ_LEN)
    company.place(0, None, [1] * (MAX_SEQ_LEN - 1))
    assert company.tables.has_room(None, [2] * (MAX_SEQ_LEN - 1))
    company.place(1, None, [2] * (MAX_SEQ_LEN - 1))
    assert not company.tables.has_room(None, [3] * 3 * BLOCK_SIZE)
    assert company.tables.has_room(None, [3] * BLOCK_SIZE)


def test_a_prompt_is_looked_up_in_a_millisecond():
    """A dialogue of 4,096 tokens that is known 32 times, different in the last ones."""
    rng = random.Random(0)
    shared = [rng.randrange(32000) for _ in range(4096)]
    tables = make_tables(num_blocks=300, max_seq_len=5000)
    for number in range(32):
        ids = [*shared[:-1], number]
        num_known = tables.place(0, None, [*ids, 0])
        tables.grow(0, len(ids))
        tables.learn(0, ids[num_known:])
        tables.release(0, is_valid=True)
    started = time.thread_time()
    for _ in range(20):
        tables._index.match(None, shared)
    assert (time.thread_time() - started) / 20 < 0.003
