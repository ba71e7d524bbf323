"""Tokenized examples in flat arrays, mapped into memory by every rank."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.data.column import read_column
from src.data.packing import Span
from src.data.tokenization import IGNORE_INDEX


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
        self.input_ids = read_column(folder / "input_ids.npy")
        self.labels = read_column(folder / "labels.npy")
        self.loss_mask = read_column(folder / "loss_mask.npy")
        self.offsets = read_column(folder / "offsets.npy")
        self.line_numbers = read_column(folder / "line_numbers.npy")

    def __len__(self) -> int:
        return len(self.line_numbers)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example."""
        return np.diff(self.offsets)

    def target_mask(self, span: Span, *, with_prompts: bool) -> np.ndarray:
        """Return which tokens of a span have a label that counts."""
        rows = slice(span.start, span.stop)
        has_label = self.labels[rows] != IGNORE_INDEX
        return has_label if with_prompts else has_label & self.loss_mask[rows]

    def place(self, token: int) -> str:
        """Return the user's file and line that a token came from."""
        example = np.searchsorted(self.offsets, token, side="right") - 1
        return f"{self.name}, line {self.line_numbers[example]}"
