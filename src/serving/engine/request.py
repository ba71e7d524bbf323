"""A request to the engine, the engine's bookkeeping of it, and the events that answer it."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from src.serving.engine.ngram import NgramProposer
from src.serving.lora.weights import LoadedAdapter
from src.serving.model.chunk import Chunk
from src.serving.sampling import SamplingParams

FinishReason = Literal["end", "length", "canceled", "error"]


class Grammar(Protocol):
    """Decides which tokens may come next."""

    @property
    def is_whole(self) -> bool:
        """Whether the text may end here."""
        ...

    def fill(self, allowed: torch.Tensor) -> None:
        """Write into a boolean row of the vocabulary which tokens are allowed."""

    def push(self, token: int) -> None:
        """Take the token that was drawn."""


@dataclass(frozen=True)
class Token:
    """The next token of an answer."""

    id: int
    logprob: float | None = None
    """What the model itself gives it, before any sampling; None where it is not asked for."""
    best: tuple[tuple[int, float], ...] = ()
    """The most likely tokens with theirs."""


@dataclass(frozen=True)
class Finished:
    """The last event of a request."""

    reason: FinishReason
    error: Exception | None = None


Event = Token | Finished


@dataclass(frozen=True, eq=False)
class Request:
    """One answer that the engine is asked for."""

    prompt_ids: list[int]
    sampling: SamplingParams
    on_output: Callable[[Event], None]
    """Called on the engine's thread."""
    adapter: LoadedAdapter | None = None
    grammar: Grammar | None = None
    num_logprobs: int = -1
    """How many of the best tokens are reported with each token; -1 reports no scores at all."""
    ignores_end: bool = False
    """Whether the answer goes on after an end-of-sequence token."""


@dataclass(eq=False)
class Sequence:
    """The engine's bookkeeping of a request; other threads may read all of it."""

    request: Request
    max_tokens: int
    """The longest that its answer can be, in tokens."""
    submitted_at: float = field(default_factory=time.monotonic)
    """As all times here, of the monotonic clock."""
    started_at: float | None = None
    first_token_at: float | None = None
    slot: int = -1
    lora_slot: int | None = None
    context_ids: list[int] = field(default_factory=list)
    """What is read before its next token is drawn: the prompt, and what it had of its answer when
    it was preempted."""
    num_computed_tokens: int = 0
    """Tokens of them that the KV cache holds."""
    num_cached_tokens: int = 0
    """Tokens of the prompt that it held already when the request came."""
    num_preempted: int = 0
    output_ids: list[int] = field(default_factory=list)
    proposer: NgramProposer | None = None
    num_proposed: int = 0
    """Speculated tokens, accepted or not."""
    num_accepted: int = 0
    is_canceled: bool = False
    is_finished: bool = False

    @property
    def ids(self) -> list[int]:
        """The prompt, and the answer as far as it is known."""
        return [*self.request.prompt_ids, *self.output_ids]

    def text(self, short_length: int) -> tuple[Hashable, list[int]]:
        """Return the tokens, after all else that their keys and values depend on.

        That is the adapter, and whether they are more than a short text, if that is not 0.
        """
        adapter, ids = self.request.adapter, self.ids
        return (None if adapter is None else adapter.key, 0 < short_length < len(ids)), ids

    def chunk(self, num_tokens: int) -> Chunk:
        """Return so many tokens that are read next, before its answer goes on."""
        start = self.num_computed_tokens
        ids = self.context_ids[start : start + num_tokens]
        num_after = len(self.context_ids) - start - len(ids)
        return Chunk(self.slot, ids, start, self.lora_slot, int(not num_after), num_after)
