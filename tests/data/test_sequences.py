"""Packing, batching and cutting keep every token, once, where it belongs."""

from itertools import pairwise

import numpy as np
import pytest

from src.chat.chat_format import build_train_format
from src.chat.conversation import Conversation
from src.data.collate import collate
from src.data.packing import PackedSequence, count_tokens, one_by_one, pack, wrap
from src.data.reading.example import ChatExample, CompletionExample, TextExample
from src.data.steps import StepPlan, choose_batch_sizes, split_micro_batches
from src.data.token_file import TokenDataset, write_tokens
from src.data.tokenization import IGNORE_INDEX, TokenizedExample, cut, tokenize

OFFSETS = np.cumsum([0, 5, 9, 1, 30, 12, 12, 3, 17, 2, 2, 2])


def all_tokens(sequences):
    return sorted(t for s in sequences for span in s for t in range(span.start, span.stop))


def test_packing_keeps_every_token_and_fills_the_chunks():
    packs = pack(OFFSETS, chunk_size=30)
    assert all_tokens(packs) == list(range(OFFSETS[-1]))
    assert max(map(count_tokens, packs)) == 30
    assert len(packs) == 4  # 95 tokens cannot go into 3 sequences of 30
    assert {span for p in packs for span in p} == {s for (s,) in one_by_one(OFFSETS)}


def test_packing_is_best_fit():
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 200, 5000))])
    packs = pack(offsets, chunk_size=512)
    assert all_tokens(packs) == list(range(offsets[-1]))
    assert len(packs) <= 1.01 * offsets[-1] / 512 + 1


@pytest.mark.parametrize("seed", range(20))
def test_the_longest_sequences_lie_apart(seed: int):
    """Each, the longest first, goes to the lightest micro-batch with room, the first of equals."""
    rng = np.random.default_rng(seed)
    step = list(one_by_one(np.cumsum([0, *rng.integers(1, 9, rng.integers(1, 60))])))
    plan = choose_batch_sizes(
        train_batch_size=60, micro_batch_size=int(rng.integers(1, 6)), num_devices=4
    )
    found = split_micro_batches(step, plan)
    micro_batches = [micro for micros in zip(*found, strict=True) for micro in micros]
    expected: list[list[PackedSequence]] = [[] for _ in micro_batches]
    for sequence in sorted(step, key=count_tokens, reverse=True):
        with_room = [micro for micro in expected if len(micro) < plan.micro_batch_size]
        min(with_room, key=lambda micro: sum(map(count_tokens, micro))).append(sequence)
    assert micro_batches == [tuple(micro) for micro in expected]


def test_wrapping_cuts_the_stream_into_exact_chunks():
    chunks = wrap(OFFSETS, chunk_size=20)
    assert [count_tokens(chunk) for chunk in chunks] == [20, 20, 20, 20, 15]
    stream = [t for chunk in chunks for span in chunk for t in range(span.start, span.stop)]
    assert stream == list(range(95))
    bounds = set(OFFSETS.tolist())
    for chunk in chunks:
        for before, after in pairwise(chunk):
            assert after.start in bounds
            assert before.stop == after.start


@pytest.mark.parametrize("num_devices", [1, 2, 3, 8])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 4])
@pytest.mark.parametrize("train_batch_size", [1, 4, 6, 7, 12])
def test_the_global_batch_is_exact(train_batch_size, micro_batch_size, num_devices):
    plan = choose_batch_sizes(
        train_batch_size=train_batch_size,
        micro_batch_size=micro_batch_size,
        num_devices=num_devices,
    )
    assert plan.global_batch_size == train_batch_size
    assert plan.world_size <= num_devices
    assert plan.micro_batch_size <= micro_batch_size
    sequences = one_by_one(OFFSETS)
    seen: list[PackedSequence] = []
    for step in StepPlan(sequences, plan, num_epochs=1, seed=1):
        ranks = split_micro_batches(step.sequences, plan)
        assert len({len(rank) for rank in ranks}) == 1
        flat = [s for rank in ranks for micro in rank for s in micro]
        assert sorted(flat, key=start_of) == sorted(step.sequences, key=start_of)
        assert all(len(micro) <= plan.micro_batch_size for rank in ranks for micro in rank)
        seen += flat
    assert sorted(seen, key=start_of) == list(sequences)


def start_of(sequence: PackedSequence) -> int:
    return sequence[0].start


def test_every_epoch_has_its_own_order_and_all_sequences():
    plan = choose_batch_sizes(train_batch_size=1, micro_batch_size=1, num_devices=1)
    orders = [
        [sequence for step in steps for sequence in step.sequences]
        for steps in [list(StepPlan(one_by_one(OFFSETS), plan, num_epochs=2, seed=1))] * 2
    ]
    assert orders[0] == orders[1]
    first, second = orders[0][:11], orders[0][11:]
    assert first != second
    assert sorted(first, key=start_of) == sorted(second, key=start_of) == list(one_by_one(OFFSETS))


@pytest.mark.parametrize("seed", range(20))
def test_the_longest_micro_batch_is_the_longest_of_all_steps(seed: int):
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *rng.integers(1, 99, rng.integers(1, 200))])
    pack_some = one_by_one if seed % 2 else lambda offsets: pack(offsets, chunk_size=120)
    batch_sizes = choose_batch_sizes(
        train_batch_size=int(rng.integers(1, 30)), micro_batch_size=3, num_devices=3
    )
    max_steps = int(rng.integers(1, 60)) if seed % 3 else None
    steps = StepPlan(pack_some(offsets), batch_sizes, num_epochs=3, seed=seed, max_steps=max_steps)
    for rank in (None, *range(batch_sizes.world_size)):
        ranks = slice(None) if rank is None else slice(rank, rank + 1)
        expected = max(
            (
                micro_batch
                for step in steps
                for of_rank in split_micro_batches(step.sequences, batch_sizes)[ranks]
                for micro_batch in of_rank
            ),
            key=count,
        )
        assert steps.longest_micro_batch(rank) == expected


@pytest.fixture
def dataset(tmp_path, tokenizer, base_dir) -> TokenDataset:
    chat_format = build_train_format(str(base_dir), tokenizer)
    examples = [
        CompletionExample("What is it?", "It is red."),
        TextExample("red"),
        CompletionExample("What?", "It is the colour of number 1."),
    ]
    tokenized = [(i + 1, *tokenize(e, chat_format)) for i, e in enumerate(examples)]
    write_tokens(tokenized, tmp_path / "data")
    return TokenDataset(tmp_path / "data", name="data.jsonl")


def test_a_batch_lies_end_to_end(dataset: TokenDataset):
    batch = collate(tuple(one_by_one(dataset.offsets)), dataset, prompt_loss_weight=0.0)
    assert batch.boundaries == tuple(dataset.offsets)
    assert batch.input_ids[0].tolist() == dataset.input_ids.tolist()
    for start, stop in pairwise(batch.boundaries):
        assert batch.position_ids[0, start:stop].tolist() == list(range(stop - start))
    assert batch.loss_weights.sum() == dataset.counts.learned_tokens
    assert batch.labels.tolist() == dataset.labels[batch.target_positions.numpy()].tolist()
    assert IGNORE_INDEX not in batch.labels
    weighted = collate(tuple(one_by_one(dataset.offsets)), dataset, prompt_loss_weight=0.25)
    extra = float(weighted.loss_weights.sum() - batch.loss_weights.sum())
    assert extra == 0.25 * (len(dataset.input_ids) - 3 - dataset.counts.learned_tokens)


def test_an_empty_micro_batch_teaches_nothing(dataset: TokenDataset):
    batch = collate((), dataset, prompt_loss_weight=0.5)
    assert batch.input_ids.shape == (1, 1)
    assert len(batch.target_positions) == len(batch.labels) == len(batch.loss_weights) == 0


def test_only_the_completion_is_learned_and_it_ends(tokenizer, base_dir):
    chat_format = build_train_format(str(base_dir), tokenizer)
    (example,) = tokenize(CompletionExample("What is it?", "It is red."), chat_format)
    learned = [t for t, m in zip(example.labels, example.loss_mask, strict=True) if m]
    assert learned == [*tokenizer.encode("It is red."), tokenizer.eos_id]
    prompt = chat_format.prompt_ids(chat_format.of_prompt("What is it?"))
    assert example.input_ids[: len(prompt)] == prompt
    assert tokenizer.decode(prompt) == "What is it?\n"


def test_every_assistant_turn_is_learned_and_ends_at_once(tokenizer):
    """In Llama 2's format a blank stands before </s>; the model must not have to write it."""
    chat_format = build_train_format("llama-2-7b-chat", tokenizer)
    said = Conversation.of("What is it?", "It is red.", "Sure?", "I think.")
    (example,) = tokenize(ChatExample(said), chat_format)
    learned = [t for t, m in zip(example.labels, example.loss_mask, strict=True) if m]
    ends = [*tokenizer.encode(" It is red."), tokenizer.eos_id]
    assert learned == [*ends, *tokenizer.encode(" I think."), tokenizer.eos_id]
    blank = tokenizer.encode(" ")
    first_end = example.input_ids.index(tokenizer.eos_id)
    assert example.input_ids[first_end - 1 : first_end] == blank


@pytest.mark.parametrize("first_learned", [2, 50, 55, 58])
def test_cutting_keeps_something_to_learn_and_the_end(first_learned: int):
    ids = list(range(100, 160))
    mask = [i >= first_learned for i in range(60)]
    labels = [*ids[1:], IGNORE_INDEX]
    mask[-1] = False
    example = cut(TokenizedExample(ids, labels, mask), max_length=20)
    assert len(example.input_ids) == len(example.labels) == len(example.loss_mask) == 20
    assert example.input_ids[0] == 100
    assert any(example.loss_mask)
    assert example.num_cut == 40
    ends = [label for label, m in zip(example.labels, example.loss_mask, strict=True) if m]
    assert ends[-1] == 159


@pytest.mark.parametrize("max_steps", [None, 5])
def test_the_schedule_is_every_step_of_every_epoch(max_steps: int | None):
    sequences = one_by_one(OFFSETS)
    plan = choose_batch_sizes(train_batch_size=4, micro_batch_size=1, num_devices=2)
    step_plan = StepPlan(sequences, plan, num_epochs=2, seed=1, max_steps=max_steps)
    steps = list(step_plan)
    assert [step.number for step in steps] == list(range(1, step_plan.num_steps + 1))
    assert len(steps) == (max_steps or 6)
    for epoch in range(2):
        seen = [s for step in steps[3 * epoch : 3 * epoch + 3] for s in step.sequences]
        assert len(set(seen)) == len(seen)
        assert set(seen) == set(sequences) or max_steps
    assert [step.number for step in steps if step.ends_epoch] == ([3] if max_steps else [3, 6])
    # The longest of all ranks is the longest of one of them, and has the longest example.
    longest = [count(step_plan.longest_micro_batch(rank)) for rank in (0, 1)]
    assert count(step_plan.longest_micro_batch()) == max(longest) == 30


def count(micro_batch) -> int:
    return sum(map(count_tokens, micro_batch))
