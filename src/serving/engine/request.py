"""A request to the engine, and what the engine says of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from src.serving.engine.ngram import NgramProposer
from src.serving.lora.weights import LoadedAdapter
from src.serving.sampling.params import SamplingParams

FinishReason = Literal["end", "length", "canceled", "error"]


class Grammar(Protocol):
    """Decides which tokens may come next."""

    def fill(self, allowed: torch.Tensor) -> None:
        """Write into a boolean row of the vocabulary which tokens are allowed."""

    def push(self, token: int) -> None:
        """Take the token that was drawn."""


@dataclass(frozen=True)
class TokenScores:
    """The logarithms of the probabilities that the model itself gives, before any sampling."""

    own: float
    best: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Token:
    """The next token of an answer."""

    id: int
    scores: TokenScores | None = None


@dataclass(frozen=True)
class Finished:
    """There is no more to come."""

    reason: FinishReason
    error: Exception | None = None


Event = Token | Finished


@dataclass(eq=False)
class Sequence:
    """One answer that the engine is asked for; the engine alone changes it, but for `cancel`."""

    prompt_ids: list[int]
    settings: SamplingParams
    on_output: Callable[[Event], None]
    """Called on the engine's thread."""
    adapter: LoadedAdapter | None = None
    grammar: Grammar | None = None
    num_logprobs: int = -1
    """How many of the best tokens are told with each token; -1 is none of it."""

    ignores_end: bool = False
    """Whether the answer goes on after a token that ends a turn."""

    is_canceled: bool = False
    submitted_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    num_cached_tokens: int = 0
    """Prompt tokens that were known already."""
    num_proposed: int = 0
    """Tokens read before they were drawn, because they had been foreseen."""
    num_accepted: int = 0

    slot: int = -1
    lora_slot: int | None = None
    num_computed_tokens: int = 0
    num_output_tokens: int = 0
    num_stepped: int = 0
    """Tokens drawn on the device, of which the last may not have arrived."""
    max_tokens: int = 0
    ids: list[int] = field(default_factory=list)
    lookahead: NgramProposer | None = None
    is_done: bool = False

    @property
    def is_prefilling(self) -> bool:
        """Whether a part of the prompt is still to be read."""
        return self.num_output_tokens == 0

    @property
    def can_be_speculated(self) -> bool:
        """Whether its next tokens may be proposed before they are drawn."""
        return self.lookahead is not None and self.lookahead.is_hopeful

    @property
    def length(self) -> int:
        """How many tokens the slot holds after the next step."""
        return len(self.prompt_ids) + self.num_stepped
