"""A request to the engine, the engine's bookkeeping of it, and the events that answer it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from src.serving.engine.ngram import NgramProposer
from src.serving.engine.stats import RequestStats
from src.serving.lora.weights import LoadedAdapter
from src.serving.sampling import SamplingParams

FinishReason = Literal["end", "length", "canceled", "error"]


class Grammar(Protocol):
    """Decides which tokens may come next."""

    def fill(self, allowed: torch.Tensor) -> None:
        """Write into a boolean row of the vocabulary which tokens are allowed."""

    def push(self, token: int) -> None:
        """Take the token that was drawn."""


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities that the model itself gives, before any sampling."""

    own: float
    best: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Token:
    """The next token of an answer."""

    id: int
    scores: TokenScores | None = None


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
    """The engine's bookkeeping of a request; other threads may read `request` and `stats`."""

    request: Request
    max_tokens: int
    """The longest that its answer can be, in tokens."""
    stats: RequestStats = field(default_factory=RequestStats)
    slot: int = -1
    lora_slot: int | None = None
    num_computed_tokens: int = 0
    """Tokens of the prompt that the KV cache holds."""
    output_ids: list[int] = field(default_factory=list)
    proposer: NgramProposer | None = None
    is_canceled: bool = False
    is_finished: bool = False
