"""What is worth knowing of the data before they are learned."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.chat.tokenizer import Tokenizer
from src.data.marked import Run, mark_example
from src.data.reading.fields import excerpt
from src.data.token_file import TokenDataset

NUM_BARS = 30
NUM_SHOWN = 3
SHOWN_TOKENS = 100
FREQUENT = 0.1
"""An answer of so large a share of the examples is named."""


@dataclass(frozen=True)
class DataReport:
    """Repetitions, lengths, and some examples as the model reads them."""

    duplicates: int
    """Training examples that stand in the file before."""
    first_duplicate: str
    """Its file and line."""
    in_both: int
    """Examples for validation that stand in the training data too."""
    validation_examples: int
    frequent_answer: str
    frequent_answers: int
    """Training examples with the most frequent answer."""
    length_edges: list[int]
    length_counts: list[int]
    """Training examples of so many tokens, from one edge up to the next."""
    examples: list[list[Run]]

    def warnings(self) -> Iterator[str]:
        """Yield a line for each repetition that may be a mistake."""
        if self.duplicates:
            yield (
                f"warning: {self.duplicates:,} training examples are exact duplicates of earlier "
                f"ones (the first: {self.first_duplicate})"
            )
        if self.in_both:
            yield (
                f"warning: {self.in_both:,} of {self.validation_examples:,} validation examples "
                "stand in the training data too: their loss tells nothing new"
            )
        num_examples = sum(self.length_counts)
        if self.frequent_answers > max(1, FREQUENT * num_examples):
            yield (
                f"warning: {self.frequent_answers:,} of {num_examples:,} training examples have "
                f"the same answer, {self.frequent_answer}"
            )


def report_data(train: TokenDataset, validation: TokenDataset, tokenizer: Tokenizer) -> DataReport:
    """Return the report of tokenized data."""
    digests, sequences = train.digests, train.last_sequences
    _, first = np.unique(digests, return_index=True)
    duplicates = np.setdiff1d(np.arange(len(digests)), first)
    _, with_answer, num_alike = np.unique(
        train.answer_digests, return_index=True, return_counts=True
    )
    most = int(num_alike.argmax())
    answer = train.sequence(int(sequences[with_answer[most]])).target_ids
    lengths = train.lengths[sequences]
    counts, edges = np.histogram(lengths, _edges(lengths))
    return DataReport(
        duplicates=len(duplicates),
        first_duplicate=_source(train, sequences[duplicates[0]]) if len(duplicates) else "",
        in_both=int(np.isin(validation.digests, digests).sum()),
        validation_examples=len(validation.digests),
        frequent_answer=excerpt(tokenizer.decode(answer[:SHOWN_TOKENS])),
        frequent_answers=int(num_alike[most]),
        length_edges=edges.tolist(),
        length_counts=counts.tolist(),
        examples=[mark_example(train.sequence(n), tokenizer) for n in sequences[:NUM_SHOWN]],
    )


def _source(dataset: TokenDataset, sequence: Any) -> str:
    return dataset.source_line(int(dataset.offsets[sequence]))


def _edges(lengths: np.ndarray) -> np.ndarray:
    """Return round bounds of at most `NUM_BARS` bars from 0 to the longest."""
    width = -(-int(lengths.max() + 1) // NUM_BARS)
    return np.arange(0, lengths.max() + 1 + width, width)
