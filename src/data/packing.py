"""Examples as sequences: each alone, several packed into one, or the stream cut into chunks."""

from bisect import bisect_left, insort
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Span:
    """Tokens `start` to `stop` of the data set; no attention leaves a span."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


PackedSequence = tuple[Span, ...]


def count_tokens(sequence: PackedSequence) -> int:
    """Return the tokens of a sequence."""
    return sum(map(len, sequence))


def one_by_one(offsets: np.ndarray) -> list[PackedSequence]:
    """Return each example as a sequence of its own."""
    bounds = offsets.tolist()
    return [(Span(a, b),) for a, b in pairwise(bounds)]


def pack(offsets: np.ndarray, *, chunk_size: int) -> list[PackedSequence]:
    """Pack examples into sequences of at most `chunk_size` tokens, longest first, tightest fit.

    Best-fit decreasing bin packing; an example of more than `chunk_size` tokens stays alone.
    """
    spans = [span for (span,) in one_by_one(offsets)]
    packs: list[list[Span]] = []
    free: list[tuple[int, int]] = []  # (free tokens, number of the pack), sorted
    for span in sorted(spans, key=len, reverse=True):
        place = bisect_left(free, (len(span), -1))
        if place == len(free):
            packs.append([span])
            room, number = chunk_size - len(span), len(packs) - 1
        else:
            room, number = free.pop(place)
            packs[number].append(span)
            room -= len(span)
        if room > 0:
            insort(free, (room, number))
    return [tuple(spans) for spans in packs]


def wrap(offsets: np.ndarray, *, chunk_size: int) -> list[PackedSequence]:
    """Cut the stream of all tokens into chunks of exactly `chunk_size`; the last may be shorter."""
    bounds = offsets.tolist()
    num_tokens = bounds[-1]
    cuts = sorted({*bounds, *range(0, num_tokens, chunk_size)})
    spans = [Span(a, b) for a, b in pairwise(cuts)]
    chunks: list[list[Span]] = [[] for _ in range(-(-num_tokens // chunk_size))]
    for span in spans:
        chunks[span.start // chunk_size].append(span)
    return [tuple(chunk) for chunk in chunks]
