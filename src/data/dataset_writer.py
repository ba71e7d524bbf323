"""Tokenized examples written to disk as they come, in memory that stays the same."""

import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np

from src.data.column import Column, copy_tail, cut_tail, read_column
from src.data.dataset import DataCounts, TokenDataset
from src.data.tokenization import IGNORE_INDEX, TokenizedExample
from src.files.disk_space import RUN_FOLDER, SpaceNeed, check_disk_space

_OF_TOKENS = {"input_ids": np.int32, "labels": np.int32, "loss_mask": np.bool_}
_OF_EXAMPLES = {"line_numbers": np.int64, "num_target_tokens": np.int64, "num_cut": np.int64}
_BYTES_PER_TOKEN = 9
_TOKENS_AHEAD = 2**18
"""Room on disk is looked for before so many tokens are written."""


def write_dataset(
    examples: Iterable[tuple[int, TokenizedExample]], folder: Path, *, name: str
) -> DataCounts:
    """Write numbered examples as the data set `folder`, with their file's name."""
    folder.mkdir(parents=True)
    num_tokens = num_tokens_with_room = 0
    with ExitStack() as stack:

        def column(name: str, dtype: type[np.generic]) -> Column:
            return stack.enter_context(Column(folder / f"{name}.npy", dtype))

        columns = {name: column(name, dtype) for name, dtype in (_OF_TOKENS | _OF_EXAMPLES).items()}
        offsets = column("offsets", np.int64)
        offsets.extend([0])
        for line_number, example in examples:
            next_token = num_tokens + len(example.input_ids)
            if next_token > num_tokens_with_room:
                num_tokens_with_room = next_token + _TOKENS_AHEAD
                _check_room("tokens", folder, num_tokens_with_room - num_tokens)
            num_tokens = next_token
            is_target = np.array(example.loss_mask, np.bool_)
            is_target &= np.array(example.labels) != IGNORE_INDEX
            columns["input_ids"].extend(example.input_ids)
            columns["labels"].extend(example.labels)
            columns["loss_mask"].extend(example.loss_mask)
            columns["line_numbers"].extend([line_number])
            columns["num_target_tokens"].extend([np.count_nonzero(is_target)])
            columns["num_cut"].extend([example.num_cut])
            offsets.extend([num_tokens])
    return _write_about(folder, name)


def split_dataset(folder: Path, num_examples: int, rest: Path) -> None:
    """Leave the first examples in a data set, and make a data set of the others."""
    dataset = TokenDataset(folder)
    first_token, num_tokens = int(dataset.offsets[num_examples]), dataset.counts.tokens
    _check_room("validation tokens", rest.parent, num_tokens - first_token)
    rest.mkdir()
    for name in _OF_TOKENS:
        copy_tail(folder / f"{name}.npy", first_token, rest / f"{name}.npy")
    for name in _OF_EXAMPLES:
        copy_tail(folder / f"{name}.npy", num_examples, rest / f"{name}.npy")
    np.save(rest / "offsets.npy", dataset.offsets[num_examples:] - first_token)
    _write_about(rest, dataset.name)
    keep_first(folder, num_examples)


def keep_first(folder: Path, num_examples: int) -> None:
    """Leave only the first examples in a data set."""
    dataset = TokenDataset(folder)
    num_tokens = int(dataset.offsets[num_examples])
    for name in _OF_TOKENS:
        cut_tail(folder / f"{name}.npy", num_tokens)
    for name in _OF_EXAMPLES:
        cut_tail(folder / f"{name}.npy", num_examples)
    cut_tail(folder / "offsets.npy", num_examples + 1)
    _write_about(folder, dataset.name)


def _check_room(what: str, folder: Path, num_tokens: int) -> None:
    check_disk_space([SpaceNeed(what, RUN_FOLDER, folder, num_tokens * _BYTES_PER_TOKEN)])


def _write_about(folder: Path, name: str) -> DataCounts:
    num_target_tokens, num_cut, offsets = (
        read_column(folder / f"{column}.npy")
        for column in ("num_target_tokens", "num_cut", "offsets")
    )
    counts = DataCounts(
        examples=len(num_cut),
        tokens=int(offsets[-1]),
        learned_tokens=int(num_target_tokens.sum()),
        cut_examples=int(np.count_nonzero(num_cut)),
        cut_tokens=int(num_cut.sum()),
    )
    (folder / "about.json").write_text(json.dumps({"name": name, "counts": asdict(counts)}))
    return counts
