"""Tokenized examples on disk: written as they come, mapped into memory by every rank.

Most examples are one sequence of tokens; of some dialogues each answer is one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from src.data.packing import Span
from src.data.tokenization import IGNORE_INDEX, TokenizedExample
from src.files.disk_space import RUN_FOLDER, SpaceNeed, check_disk_space

_TOKEN = np.dtype([("input_id", np.int32), ("label", np.int32), ("is_target", np.bool_)])
_EXAMPLE = np.dtype(
    [
        ("stop", np.int64),
        ("line_number", np.int64),
        ("num_targets", np.int64),
        ("num_cut", np.int64),
        ("digest", np.uint64),
        ("answer_digest", np.uint64),
    ]
)
_TOKENS_AHEAD = 2**18
"""The disk is asked for room before so many tokens are written."""


@dataclass(frozen=True)
class DataCounts:
    """What the tokenizer made of a file, in the words of the manifest."""

    examples: int
    tokens: int
    learned_tokens: int
    cut_examples: int
    cut_tokens: int


def write_tokens(examples: Iterable[tuple[int, TokenizedExample]], path: Path) -> None:
    """Write (line number, example) to `path`.tokens and `path`.examples.

    Raises UserError for a disk without room for them.
    """
    stop = stop_with_room = 0
    tokens_path, examples_path = _paths(path)
    with tokens_path.open("wb") as token_file, examples_path.open("wb") as example_file:
        for line_number, example in examples:
            start, stop = stop, stop + len(example.input_ids)
            if stop > stop_with_room:
                stop_with_room = stop + _TOKENS_AHEAD
                num_bytes = (stop_with_room - start) * _TOKEN.itemsize
                check_disk_space([SpaceNeed("tokens", RUN_FOLDER, path.parent, num_bytes)])
            tokens = np.empty(stop - start, _TOKEN)
            tokens["input_id"] = example.input_ids
            tokens["label"] = example.labels
            tokens["is_target"] = example.loss_mask
            tokens["is_target"] &= tokens["label"] != IGNORE_INDEX
            num_targets = np.count_nonzero(tokens["is_target"])
            token_file.write(tokens.tobytes())
            digest = _digest(tokens)
            answer_digest = _digest(tokens["label"][tokens["is_target"]])
            row = np.array(
                (stop, line_number, num_targets, example.num_cut, digest, answer_digest), _EXAMPLE
            )
            example_file.write(row.tobytes())


class TokenDataset:
    """The sequences `first` to `last` of a token file, end to end.

    Sequence i is tokens `offsets[i]` to `offsets[i + 1]`; `name` is the user's file.
    """

    def __init__(self, path: Path, *, name: str, first: int = 0, last: int | None = None) -> None:
        tokens_path, examples_path = _paths(path)
        examples = _map(examples_path, _EXAMPLE)
        start = int(examples["stop"][first - 1]) if first else 0
        self._examples = examples[first:last]
        self.name = name
        self.offsets = np.concatenate([[0], self._examples["stop"] - start])
        tokens = _map(tokens_path, _TOKEN)[start : start + self.offsets[-1]]
        self.input_ids, self.labels = tokens["input_id"], tokens["label"]
        self.loss_mask = tokens["is_target"]

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence."""
        return np.diff(self.offsets)

    def first_sequence(self, example: int) -> int:
        """Return the first sequence of an example, or their number behind the last one."""
        return int([*self._starts, len(self)][example])

    @property
    def _starts(self) -> np.ndarray:
        """The first sequence of each example: those of one come from one line of the file."""
        return np.flatnonzero(np.diff(self._examples["line_number"], prepend=-1))

    @property
    def counts(self) -> DataCounts:
        num_cut = self._examples["num_cut"]
        return DataCounts(
            examples=len(self._starts),
            tokens=int(self.offsets[-1]),
            learned_tokens=int(self._examples["num_targets"].sum()),
            cut_examples=int(np.count_nonzero(num_cut)),
            cut_tokens=int(num_cut.sum()),
        )

    @property
    def last_sequences(self) -> np.ndarray:
        """The last sequence of each example, which has all that was said in it."""
        return np.flatnonzero(np.diff(self._examples["line_number"], append=-1))

    @property
    def digests(self) -> np.ndarray:
        """A number for each example; equal ones are of equal examples."""
        return self._examples["digest"][self.last_sequences]

    @property
    def answer_digests(self) -> np.ndarray:
        """A number for each example; equal ones are of equal answers."""
        return self._examples["answer_digest"][self.last_sequences]

    def sequence(self, number: int) -> TokenizedExample:
        """Return a sequence as it was written."""
        rows = slice(*self.offsets[number : number + 2])
        return TokenizedExample(
            self.input_ids[rows].tolist(),
            self.labels[rows].tolist(),
            self.loss_mask[rows].tolist(),
            int(self._examples["num_cut"][number]),
        )

    def target_mask(self, span: Span, *, with_prompts: bool) -> np.ndarray:
        """Return which tokens of a span have a label that counts."""
        rows = slice(span.start, span.stop)
        return self.labels[rows] != IGNORE_INDEX if with_prompts else self.loss_mask[rows]

    def source_line(self, token: int) -> str:
        """Return the user's file and line that a token came from."""
        example = np.searchsorted(self.offsets, token, side="right") - 1
        return f"{self.name}, line {self._examples['line_number'][example]}"


def _digest(tokens: np.ndarray) -> int:
    return int.from_bytes(blake2b(tokens.tobytes(), digest_size=8).digest())


def _paths(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}.tokens"), path.with_name(f"{path.name}.examples")


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
