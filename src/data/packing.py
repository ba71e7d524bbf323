"""Examples as sequences: each alone, several packed into one, or the stream cut into chunks."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np


@dataclass(frozen=True)
class Span:
    """Tokens `start` to `stop` of the data set; no attention leaves a span."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


PackedSequence = tuple[Span, ...]


def count_tokens(spans: Sequence[Span]) -> int:
    """Return how many tokens they have together."""
    return sum(map(len, spans))


def halve(spans: Sequence[Span]) -> list[list[Span]]:
    """Split spans in two parts of about as many tokens."""
    parts: list[list[Span]] = [[], []]
    for span in sorted(spans, key=len, reverse=True):
        min(parts, key=count_tokens).append(span)
    return parts


@dataclass(frozen=True)
class PackedSequences:
    """The sequences of a data set, held as arrays: there may be millions.

    Sequence i is the spans `first_spans[i]` to `first_spans[i + 1]`.
    """

    starts: np.ndarray  # (spans,)
    stops: np.ndarray  # (spans,)
    first_spans: np.ndarray  # (sequences + 1,)

    def __len__(self) -> int:
        return len(self.first_spans) - 1

    def __getitem__(self, number: int) -> PackedSequence:
        spans = slice(self.first_spans[number], self.first_spans[number + 1])
        bounds = zip(self.starts[spans].tolist(), self.stops[spans].tolist(), strict=True)
        return tuple(Span(start, stop) for start, stop in bounds)

    def __iter__(self) -> Iterator[PackedSequence]:
        return map(self.__getitem__, range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence."""
        return np.add.reduceat(self.stops - self.starts, self.first_spans[:-1])


def one_by_one(offsets: np.ndarray) -> PackedSequences:
    """Return each example as a sequence of its own."""
    return PackedSequences(offsets[:-1], offsets[1:], np.arange(len(offsets)))


def pack(offsets: np.ndarray, *, chunk_size: int) -> PackedSequences:
    """Pack examples into sequences of at most `chunk_size` tokens, longest first, tightest fit.

    Best-fit decreasing bin packing; an example of more than `chunk_size` tokens stays alone.
    """
    lengths = np.diff(offsets)
    longest_first = np.argsort(-lengths, kind="stable")
    packs = np.empty(len(lengths), np.int64)  # of the examples, longest first
    num_packs = 0
    rooms: list[int] = []  # sorted; so many tokens are free in some packs
    packs_with = defaultdict[int, list[int]](list)  # heaps of packs by their room
    for i, length in enumerate(lengths[longest_first].tolist()):
        tightest = bisect_left(rooms, length)
        if tightest == len(rooms):
            pack, room = num_packs, chunk_size
            num_packs += 1
        else:
            room = rooms[tightest]
            pack = heappop(packs_with[room])
            if not packs_with[room]:
                del rooms[tightest]
        packs[i] = pack
        room -= length
        if room > 0:
            if not packs_with[room]:
                insort(rooms, room)
            heappush(packs_with[room], pack)
    examples = longest_first[np.argsort(packs, kind="stable")]
    sizes = np.bincount(packs, minlength=num_packs)
    return PackedSequences(
        offsets[examples], offsets[examples + 1], np.concatenate([[0], np.cumsum(sizes)])
    )


def wrap(offsets: np.ndarray, *, chunk_size: int) -> PackedSequences:
    """Cut the stream of all tokens into chunks of exactly `chunk_size`; the last may be shorter."""
    chunk_starts = np.arange(0, offsets[-1], chunk_size)
    cuts = np.union1d(offsets, chunk_starts)
    first_spans = np.searchsorted(cuts, [*chunk_starts, offsets[-1]])
    return PackedSequences(cuts[:-1], cuts[1:], first_spans)
