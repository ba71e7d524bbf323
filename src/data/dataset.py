"""Tokenized examples in flat arrays, written once and mapped into memory by every rank."""

import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.data.packing import Span
from src.data.tokenization import IGNORE_INDEX, TokenizedExample


@dataclass(frozen=True)
class DataCounts:
    """What the tokenizer made of a file."""

    examples: int = 0
    tokens: int = 0
    learned_tokens: int = 0
    cut_examples: int = 0
    cut_tokens: int = 0


class TokenDataset:
    """Examples laid end to end: `offsets[i]` to `offsets[i + 1]` is example i."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "about.json").read_text())
        self.name: str = about["name"]
        self.counts = DataCounts(**about["counts"])
        self.input_ids = _load(folder, "input_ids")
        self.labels = _load(folder, "labels")
        self.completion_mask = _load(folder, "completion_mask")
        self.offsets = _load(folder, "offsets")
        self.line_numbers = _load(folder, "line_numbers")

    def __len__(self) -> int:
        return len(self.line_numbers)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example."""
        return np.diff(self.offsets)

    def learned(self, span: Span, *, with_prompts: bool) -> np.ndarray:
        """Return which tokens of a span have a label that counts."""
        rows = slice(span.start, span.stop)
        has_label = self.labels[rows] != IGNORE_INDEX
        return has_label if with_prompts else has_label & self.completion_mask[rows]

    def place(self, token: int) -> str:
        """Return the user's file and line that a token came from."""
        example = np.searchsorted(self.offsets, token, side="right") - 1
        return f"{self.name}, line {self.line_numbers[example]}"


def _load(folder: Path, name: str) -> np.ndarray:
    path = folder / f"{name}.npy"
    # An empty file cannot be mapped.
    return np.load(path, mmap_mode="r") if path.stat().st_size > 128 else np.load(path)


class DatasetWriter:
    """Collects tokenized examples and writes them as one data set."""

    def __init__(self) -> None:
        self.input_ids = array("i")
        self.labels = array("i")
        self.completion_mask = array("b")
        self.offsets = array("q", [0])
        self.line_numbers = array("q")
        self.num_cut = array("q")

    def add(self, line_number: int, example: TokenizedExample) -> None:
        """Add one example."""
        self.input_ids.extend(example.input_ids)
        self.labels.extend(example.labels)
        self.completion_mask.extend(example.completion_mask)
        self.offsets.append(len(self.input_ids))
        self.line_numbers.append(line_number)
        self.num_cut.append(example.num_cut)

    @property
    def num_bytes(self) -> int:
        """Bytes that the whole of it takes on disk."""
        tokens = (self.input_ids, self.labels, self.completion_mask)
        examples = (self.offsets, self.line_numbers)
        return sum(len(column) * column.itemsize for column in (*tokens, *examples))

    def write(self, folder: Path, *, rows: slice, name: str) -> None:
        """Write the examples numbered `rows` as a data set of their own, with its file's name."""
        folder.mkdir(parents=True)
        start, stop, _ = rows.indices(len(self.line_numbers))
        offsets = np.array(self.offsets, dtype=np.int64)[start : stop + 1]
        if len(offsets) == 0:
            offsets = np.zeros(1, dtype=np.int64)
        tokens = slice(offsets[0], offsets[-1])
        mask = np.frombuffer(self.completion_mask, dtype=np.int8)[tokens].astype(bool)
        labels = np.frombuffer(self.labels, dtype=np.int32)[tokens]
        counts = {
            "examples": stop - start,
            "tokens": int(offsets[-1] - offsets[0]),
            "learned_tokens": int((mask & (labels != IGNORE_INDEX)).sum()),
            "cut_examples": sum(count > 0 for count in self.num_cut[start:stop]),
            "cut_tokens": sum(self.num_cut[start:stop]),
        }
        np.save(folder / "input_ids.npy", np.frombuffer(self.input_ids, dtype=np.int32)[tokens])
        np.save(folder / "labels.npy", labels)
        np.save(folder / "completion_mask.npy", mask)
        np.save(folder / "offsets.npy", offsets - offsets[0])
        np.save(folder / "line_numbers.npy", np.array(self.line_numbers, np.int64)[start:stop])
        (folder / "about.json").write_text(json.dumps({"name": name, "counts": counts}))


def collect(examples: Iterable[tuple[int, TokenizedExample]]) -> DatasetWriter:
    """Return a writer that holds all examples."""
    writer = DatasetWriter()
    for line_number, example in examples:
        writer.add(line_number, example)
    return writer
