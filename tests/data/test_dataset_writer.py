"""A data set is written as it comes and split without being in memory."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from src.data.dataset import TokenDataset
from src.data.dataset_writer import keep_first, split_dataset, write_dataset
from src.data.tokenization import IGNORE_INDEX, TokenizedExample
from src.errors import UserError
from tests.measure import measure

COLUMNS = ("input_ids", "labels", "loss_mask", "line_numbers")


def make_examples(num_examples: int) -> list[TokenizedExample]:
    rng = np.random.default_rng(0)
    examples = []
    for number in range(num_examples):
        ids = rng.integers(3, 500, rng.integers(1, 40)).tolist()
        mask = (rng.random(len(ids)) < 0.5).tolist()
        examples.append(TokenizedExample(ids, [*ids[1:], IGNORE_INDEX], mask, number % 3))
    return examples


def write(folder: Path, examples: list[TokenizedExample]) -> TokenDataset:
    write_dataset(enumerate(examples, start=1), folder, name="data.jsonl")
    return TokenDataset(folder)


def assert_same(found: TokenDataset, expected: TokenDataset) -> None:
    assert (found.name, found.counts) == (expected.name, expected.counts)
    assert found.offsets.tolist() == expected.offsets.tolist()
    for column in COLUMNS:
        assert getattr(found, column).dtype == getattr(expected, column).dtype
        assert getattr(found, column).tolist() == getattr(expected, column).tolist()


@pytest.mark.parametrize("num_first", [0, 1, 60, 99, 100])
def test_a_part_is_what_would_have_been_written_alone(tmp_path: Path, num_first: int):
    examples = make_examples(100)
    for name in ("split", "cut"):
        write(tmp_path / name, examples)
    split_dataset(tmp_path / "split", num_first, tmp_path / "rest")
    keep_first(tmp_path / "cut", num_first)
    first = write(tmp_path / "first", examples[:num_first])
    assert_same(TokenDataset(tmp_path / "split"), first)
    assert_same(TokenDataset(tmp_path / "cut"), first)
    rest = TokenDataset(tmp_path / "rest")
    numbered = list(enumerate(examples, start=1))[num_first:]
    write_dataset(numbered, tmp_path / "last", name="data.jsonl")
    assert_same(rest, TokenDataset(tmp_path / "last"))
    assert rest.counts.learned_tokens == sum(
        sum(m and label != IGNORE_INDEX for m, label in zip(e.loss_mask, e.labels, strict=True))
        for e in examples[num_first:]
    )


def test_memory_does_not_grow_with_the_tokens(tmp_path: Path):
    jobs = [[str(tmp_path / count), count] for count in ("10", "8000")]
    few, many = measure("tests.data.token_jobs:write_and_split", jobs)
    assert few.outcome == many.outcome == "taken"
    size = sum(path.stat().st_size for path in (tmp_path / "8000").rglob("*.npy"))
    assert size > 72_000_000
    assert many.peak_mebibytes < few.peak_mebibytes + 8


def test_a_disk_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Usage(NamedTuple):
        free: int

    def usage(folder: Path) -> Usage:
        written = sum(path.stat().st_size for path in (tmp_path / "data").iterdir())
        return Usage(10_000_000 - written)

    monkeypatch.setattr("src.files.disk_space.shutil.disk_usage", usage)
    example = TokenizedExample([5] * 10_000, [5] * 10_000, [True] * 10_000)
    sentence = r"the disk of the run's folder has [\d.]+ MB free, .*\(tokens [\d.]+ MB\)"
    with pytest.raises(UserError, match=sentence):
        write_dataset(((n, example) for n in range(1000)), tmp_path / "data", name="a")
