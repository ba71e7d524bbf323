"""A slot reads the keys of its own tokens, whoever else took, shared and released blocks before."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from itertools import chain, product

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.serving.cache.block_tables import BlockTables
from src.serving.cache.kv_cache import BLOCK_SIZE, FIRST_PAGE, KVCache, num_blocks_of
from src.serving.cache.layer_groups import group_layers

MAX_SEQ_LEN, NUM_SLOTS, NUM_PAGES, MOST_READ = 5 * BLOCK_SIZE, 4, 12, 2 * BLOCK_SIZE
MIXED = 40, None, 40
"""Windows of layers; pages hold one, so that a block of the windowed ones has two."""


def make_tables(
    num_pages: int = NUM_PAGES, num_slots: int = NUM_SLOTS, max_seq_len: int = MAX_SEQ_LEN,
    windows: Sequence[int | None] = (None,),
) -> BlockTables:  # fmt: skip
    cache = KVCache(
        layers=group_layers(windows), num_pages=num_pages, num_slots=num_slots,
        max_seq_len=max_seq_len, num_key_value_heads=1, head_size=1, dtype=torch.float64,
        device=torch.device("cpu"),
    )  # fmt: skip
    return BlockTables(cache, most_read=MOST_READ)


class Company:
    """Slots that write for each token what only its whole past can give, and check what they read.

    It holds what it checks against: which tokens each slot has written.
    """

    def __init__(self, *, windows: Sequence[int | None] = (None,), **options) -> None:
        self.tables = make_tables(windows=windows, **options)
        self.cache, self.windows = self.tables.tensors, windows
        self.texts: dict[int, tuple[str | None, list[int]]] = {}

    def place(self, slot: int, key: str | None, ids: list[int]) -> int:
        num_known = self.tables.place(slot, key, ids)
        self.texts[slot] = key, ids[:num_known]
        self.check()
        self.check_seen(slot)
        return num_known

    def write(self, slot: int, ids: list[int], *, is_learned: bool = True) -> bool:
        key, known = self.texts[slot]
        if not self.tables.grow(slot, len(known) + len(ids), len(known)):
            return False
        self.check_seen(slot)
        for token in ids:
            known.append(token)
            places = self.cache.place(slot, len(known) - 1)
            for layer in range(len(self.windows)):
                place = places[self.cache.table(layer)]
                self.cache.places(layer)[place] = meaning(layer, key, known)
        if is_learned:
            self.tables.learn(slot, ids)
        self.check()
        return True

    def release(self, slot: int, *, is_valid: bool = True) -> None:
        self.tables.release(slot, is_valid=is_valid)
        del self.texts[slot]
        self.check()

    def read(self, layer: int, slot: int, position: int) -> float | None:
        """Return what a layer holds of a token; None where that was given back."""
        page = int(self.cache.tables[self.cache.table(layer), slot, position // BLOCK_SIZE])
        if page < FIRST_PAGE:
            return None
        return float(self.cache.layer(layer)[page, position % BLOCK_SIZE, 0, 0])

    def check_seen(self, slot: int) -> None:
        """A slot holds all that its next token sees of those before it."""
        length = len(self.texts[slot][1])
        for layer, window in enumerate(self.windows):
            seen = range(max(0, length + 1 - (window or length + 1)), length)
            assert all(self.read(layer, slot, position) is not None for position in seen)

    def num_held(self, group: int, slot: int) -> int:
        return sum(bool(block) for block in self.cache.held[group][slot])

    def check(self) -> None:
        """Every token is where its slot reads it, and each page is there once."""
        users: Counter[tuple[int, ...]] = Counter()
        for slot, (key, ids) in self.texts.items():
            for group, held in zip(self.cache.groups, self.cache.held, strict=True):
                tables = self.cache.tables[group.tables, slot].t().tolist()
                empty = (0,) * group.num_pages
                assert [tuple(pages) for pages in tables[: len(held[slot])]] == [
                    block or empty for block in held[slot]
                ]
                users.update(filter(None, held[slot]))
            for position, layer in product(range(len(ids)), range(len(self.windows))):
                expected = None, meaning(layer, key, ids[: position + 1])
                assert self.read(layer, slot, position) in expected
        pool = self.tables._pool
        assert users == +pool._num_users
        unused = [*pool._free, *chain.from_iterable(pool._idle)]
        assert len(unused) == self.tables.num_available
        pages = range(FIRST_PAGE, FIRST_PAGE + self.cache.num_pages)
        assert sorted([*unused, *chain.from_iterable(users)]) == list(pages)
        index = self.tables._index
        assert all(block in index for block in pool._idle)
        assert set(index._of_block) <= {*pool._idle, *users}
        links = [link for own in index._children.values() for link in own.values()]
        assert {block for link in links for block in link.blocks if block} == set(index._of_block)


def meaning(layer: int, key: str | None, ids: list[int]) -> float:
    return float(hash((layer, key, tuple(ids))) % 2**50)


LENGTHS = st.integers(1, 2 * BLOCK_SIZE + 3)
ACTIONS = st.lists(
    st.tuples(
        st.integers(0, NUM_SLOTS - 1), st.sampled_from([None, "one"]), st.integers(0, 3), LENGTHS
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(
    ACTIONS,
    st.sampled_from([(None,), (40,), MIXED]),
    st.integers(6, NUM_PAGES),
    st.integers(0, 2**16),
)
def test_no_block_is_lost_or_owned_twice_and_every_token_is_found(
    actions, windows, num_blocks, seed
):
    """Texts of three tokens, so that they share beginnings of all lengths."""
    num_pages = num_blocks * group_layers(windows).num_tables
    rng, company = random.Random(seed), Company(windows=windows, num_pages=num_pages)
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
    assert company.tables.num_available == num_pages


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
    (first, second, *_), *_ = company.cache.held
    assert first[:2] == second[:2]
    assert first[2] != second[2]
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
    """In pieces of 10 tokens; a group without one keeps them all."""
    company = Company(windows=MIXED, num_pages=100, max_seq_len=1000)
    groups = company.cache.groups
    company.place(0, None, [1] * 10)
    for start in range(0, 300, 10):
        assert company.write(0, list(range(start, start + 10)))
        for number, group in enumerate(groups):
            most = num_blocks_of(start + 10)
            if group.window is not None:
                most = min(most, num_blocks_of(group.window + 10) + 1)
            assert most - 1 <= company.num_held(number, 0) <= most


def test_a_beginning_is_known_where_all_groups_know_what_they_see_of_it():
    company, ids = Company(windows=(None, 40), num_pages=20, max_seq_len=1000), list(range(320))
    company.place(0, None, ids)
    for start in range(0, 320, BLOCK_SIZE):
        company.write(0, ids[start : start + BLOCK_SIZE])
    company.release(0)
    # Of the 20 blocks in two groups, those go that the windowed one gave back first.
    company.place(0, None, [9] * 96)
    company.write(0, [9] * 96)
    for num_blocks in range(1, 11):
        length = num_blocks * BLOCK_SIZE
        assert company.place(1, None, [*ids[:length], 9]) == (length if num_blocks >= 8 else 0)
        company.release(1)


def test_what_was_no_number_is_cleared_before_others_hold_it():
    company = Company()
    company.place(0, None, [1] * 40)
    company.write(0, [1] * 40)
    company.cache.places(0)[company.cache.place(0, 39)] = float("nan")
    company.release(0, is_valid=False)
    for slot in range(NUM_SLOTS - 1):
        company.place(slot, None, [2, 3, slot] * 11)
        company.write(slot, [2, 3, slot] * 11)
    held = [page for held in company.cache.held[0] for (page,) in held]
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
    tables = make_tables(num_pages=300, max_seq_len=5000)
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
