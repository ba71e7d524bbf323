"""A token file is written as it comes, and a part of it is read without the rest."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from src.data.packing import Span
from src.data.token_file import TokenDataset, write_tokens
from src.data.tokenization import IGNORE_INDEX, TokenizedExample
from src.errors import UserError
from tests.measure import measure

COLUMNS = ("offsets", "input_ids", "labels", "loss_mask")


def make_examples(num_examples: int) -> list[TokenizedExample]:
    rng = np.random.default_rng(0)
    examples = []
    for number in range(num_examples):
        ids = rng.integers(3, 500, rng.integers(1, 40)).tolist()
        mask = (rng.random(len(ids)) < 0.5).tolist()
        examples.append(TokenizedExample(ids, [*ids[1:], IGNORE_INDEX], mask, number % 3))
    return examples


def write(path: Path, examples: list[TokenizedExample], *, first_line: int = 1) -> TokenDataset:
    write_tokens(enumerate(examples, first_line), path)
    return TokenDataset(path, name="data.jsonl")


def source_lines(dataset: TokenDataset) -> list[str]:
    return [dataset.source_line(token) for token in dataset.offsets[:-1]]


@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 1), (0, 60), (60, 100), (100, 100)])
def test_a_part_is_what_would_have_been_written_alone(tmp_path: Path, first: int, last: int):
    examples = make_examples(100)
    write(tmp_path / "all", examples)
    found = TokenDataset(tmp_path / "all", name="data.jsonl", first=first, last=last)
    alone = write(tmp_path / "alone", examples[first:last], first_line=first + 1)
    assert len(found) == last - first
    assert found.counts == alone.counts
    assert source_lines(found) == source_lines(alone)
    for column in COLUMNS:
        assert getattr(found, column).dtype == getattr(alone, column).dtype
        assert getattr(found, column).tolist() == getattr(alone, column).tolist()
    assert found.counts.learned_tokens == sum(
        m and label != IGNORE_INDEX
        for e in examples[first:last]
        for m, label in zip(e.loss_mask, e.labels, strict=True)
    )
    assert found.counts.cut_tokens == sum(e.num_cut for e in examples[first:last])
    assert found.counts.cut_examples == sum(e.num_cut > 0 for e in examples[first:last])


def test_a_token_is_found_in_the_users_file(tmp_path: Path):
    examples = [TokenizedExample([1, 2, 3], [2, 3, -100], [False, True, True]) for _ in range(3)]
    write_tokens(zip((4, 9, 11), examples, strict=True), tmp_path / "data")
    part = TokenDataset(tmp_path / "data", name="a.jsonl", first=1)
    assert [part.source_line(token) for token in (0, 2, 3)] == [
        *["a.jsonl, line 9"] * 2,
        "a.jsonl, line 11",
    ]
    span = Span(0, 3)
    assert part.target_mask(span, with_prompts=False).tolist() == [False, True, False]
    assert part.target_mask(span, with_prompts=True).tolist() == [True, True, False]


def test_memory_does_not_grow_with_the_tokens(tmp_path: Path):
    jobs = [[str(tmp_path / count), count] for count in ("10", "8000")]
    few, many = measure("tests.data.token_jobs:write", jobs)
    assert few.outcome == many.outcome == "taken"
    size = sum(path.stat().st_size for path in tmp_path.glob("8000.*"))
    assert size > 72_000_000
    assert many.peak_mebibytes < few.peak_mebibytes + 8


def test_a_disk_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Usage(NamedTuple):
        free: int

    def usage(folder: Path) -> Usage:
        written = sum(path.stat().st_size for path in tmp_path.iterdir())
        return Usage(10_000_000 - written)

    monkeypatch.setattr("src.files.disk_space.shutil.disk_usage", usage)
    example = TokenizedExample([5] * 10_000, [5] * 10_000, [True] * 10_000)
    sentence = r"the disk of the run's folder has [\d.]+ MB free, .*\(tokens [\d.]+ MB\)"
    with pytest.raises(UserError, match=sentence):
        write_tokens(((n, example) for n in range(1000)), tmp_path / "data")
