"""From the model's scores to the next token, for all rows of a step at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from src.errors import UserError
from src.serving.engine.ngram import num_accepted
from src.serving.noise import Noise, noise_key

GREEDY_BELOW, MIN_PENALTY = 1e-5, 1e-2


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one answer are drawn."""

    max_new_tokens: int = 128
    min_new_tokens: int = -1
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = -1
    repetition_penalty: float = 1.15
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "max_new_tokens": (1, 2**31),
            "min_new_tokens": (-1, 2**31),
            "temperature": (0, 5),
            "top_p": (0, 1),
            "top_k": (-1, 2**31),
            "repetition_penalty": (0, 1e6),
        }
        for name, (lowest, highest) in limits.items():
            value = getattr(self, name)
            if not lowest <= value <= highest:
                raise UserError(
                    f"{name}: expected a number from {lowest} to {highest}, got {value}"
                )

    @property
    def is_greedy(self) -> bool:
        """Whether the best token is taken, without a draw."""
        return self.temperature < GREEDY_BELOW


class Sampler:
    """Holds the sampling params of the requests in the slots, where a captured step reads them."""

    def __init__(
        self,
        *,
        num_slots: int,
        vocab_size: int,
        end_ids: Iterable[int],
        device: torch.device,
        unused_ids: Sequence[int] = (),
    ) -> None:
        """`unused_ids` are rows of the vocabulary that no token belongs to."""

        def rows(dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.ones(num_slots, dtype=dtype, device=device)

        self._device, self._vocab_size = device, vocab_size
        self._end_ids = torch.tensor(sorted(end_ids), device=device)
        self._unused_ids = torch.tensor(unused_ids, dtype=torch.long, device=device)
        self._noise = Noise(vocab_size, device)
        # As in the paper (CTRL, Keskar et al. 2019) and in transformers, the prompt counts as seen.
        self._seen = torch.zeros((num_slots, vocab_size), dtype=torch.bool, device=device)
        self.allowed = torch.ones((num_slots, vocab_size), dtype=torch.bool, device=device)
        """What a grammar lets through; read for rows that have one."""
        self._penalty, self._temperature, self._top_p = rows(), rows(), rows()
        self._is_greedy = rows(torch.bool)
        self._top_k, self._end_from, self._key = (rows(torch.long) for _ in range(3))
        self._features: list[frozenset[str]] = [frozenset()] * num_slots

    def set(
        self,
        slot: int,
        params: SamplingParams,
        *,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int] = (),
        has_grammar: bool = False,
    ) -> None:
        """Draw the tokens of this slot by the sampling params of a request.

        `output_ids` are those that it had drawn before it got this slot.
        """
        penalty = max(params.repetition_penalty, MIN_PENALTY)
        # A grammar says itself where the text may end.
        is_held_open = params.min_new_tokens > 0 and not has_grammar
        top_k = params.top_k if 0 < params.top_k < self._vocab_size else self._vocab_size
        is_on = {
            "penalty": penalty != 1,
            "grammar": has_grammar,
            "min_tokens": is_held_open,
            "noise": not params.is_greedy,
            "top_k": not params.is_greedy and top_k < self._vocab_size,
            "top_p": not params.is_greedy and params.top_p < 1,
        }
        self._features[slot] = frozenset(name for name, is_on in is_on.items() if is_on)
        self._penalty[slot] = penalty
        self._end_from[slot] = len(prompt_ids) + params.min_new_tokens if is_held_open else 0
        self._is_greedy[slot] = params.is_greedy
        self._temperature[slot] = 1 if params.is_greedy else params.temperature
        self._top_k[slot] = self._vocab_size if params.is_greedy else top_k
        self._top_p[slot] = 1 if params.is_greedy else params.top_p
        self._key[slot] = noise_key(params.seed)
        self.allowed[slot] = True
        if is_on["penalty"]:
            self._seen[slot] = False
            seen = torch.tensor([*prompt_ids, *output_ids], dtype=torch.long, device=self._device)
            self._seen[slot, seen] = True

    def clear(self, slot: int) -> None:
        """Forget the sampling params of a request that is done."""
        self._features[slot] = frozenset()

    def features(self, rows: slice) -> frozenset[str]:
        """Return which parts of the sampling any of these rows needs."""
        return frozenset().union(*self._features[rows])

    def hide_unused_(self, logits: torch.Tensor) -> None:
        """Take the rows that no token belongs to out of the scores (rows, vocabulary), in place."""
        if len(self._unused_ids):
            logits.index_fill_(1, self._unused_ids, -torch.inf)

    def draw(
        self,
        logits: torch.Tensor,  # (rows, vocabulary)
        positions: torch.Tensor,  # (rows,) that the new tokens will have
        *,
        rows: slice,
        features: frozenset[str],
    ) -> torch.Tensor:
        """Return the next token of each of these slots (rows,)."""
        tokens = self._best(logits, positions, rows, features, self._seen[rows])
        if "penalty" in features:
            self._seen[rows].scatter_(1, tokens[:, None], True)
        return tokens

    def draw_speculated(
        self,
        logits: torch.Tensor,  # (tokens, vocabulary) after the last token and after each proposed
        position: int,
        proposed: Sequence[int],
        *,
        slot: int,
    ) -> list[int]:
        """Return the tokens drawn from this position on: the accepted ones, and one more."""
        num_rows = len(proposed) + 1
        rows = torch.full((num_rows,), slot, device=self._device)
        positions = torch.arange(position, position + num_rows, device=self._device)
        features, seen = self._features[slot], self._seen[slot : slot + 1]
        if "penalty" in features:
            seen = seen.repeat(num_rows, 1)
            for row, token in enumerate(proposed):
                seen[row + 1 :, token] = True
        drawn = self._best(logits, positions, rows, features, seen).tolist()
        drawn = drawn[: num_accepted(proposed, drawn) + 1]
        if "penalty" in features:
            self._seen[slot, torch.tensor(drawn, device=self._device)] = True
        return drawn

    def _best(
        self,
        logits: torch.Tensor,  # (rows, vocabulary)
        positions: torch.Tensor,  # (rows,)
        rows: slice | torch.Tensor,
        features: frozenset[str],
        seen: torch.Tensor,  # (rows, vocabulary)
    ) -> torch.Tensor:
        scores = logits.float()
        if "penalty" in features:
            penalty = self._penalty[rows, None]
            penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
            scores = torch.where(seen, penalised, scores)
        if "min_tokens" in features:
            is_early = (positions < self._end_from[rows])[:, None]
            ends = scores[:, self._end_ids].masked_fill(is_early, -torch.inf)
            scores = scores.index_copy(1, self._end_ids, ends)
        if "grammar" in features:
            scores = scores.masked_fill(~self.allowed[rows], -torch.inf)
        if "noise" in features:
            scores = scores / self._temperature[rows, None]
            scores = keep_top(
                scores,
                self._top_k[rows] if "top_k" in features else None,
                self._top_p[rows] if "top_p" in features else None,
            )
            noise = self._noise.gumbel(self._key[rows], positions)
            scores = scores + noise.masked_fill_(self._is_greedy[rows, None], 0)
        return scores.argmax(-1)


def keep_top(
    scores: torch.Tensor,  # (rows, vocabulary)
    top_k: torch.Tensor | None,  # (rows,)
    top_p: torch.Tensor | None,  # (rows,)
) -> torch.Tensor:
    """Leave out all but the `top_k` best scores, then all but the best that make up `top_p`.

    At least the best one stays (nucleus sampling, Holtzman et al. 2019).
    """
    if top_k is None and top_p is None:
        return scores
    ordered, order = scores.sort(descending=True, stable=True)
    if top_k is not None:
        worst = ordered.gather(1, (top_k - 1)[:, None])
        # Equal scores stay together, as in transformers.
        ordered = ordered.masked_fill(ordered < worst, -torch.inf)
    if top_p is not None:
        probabilities = ordered.softmax(-1)
        is_left_out = probabilities.cumsum(-1) - probabilities >= top_p[:, None]
        is_left_out &= top_p[:, None] < 1
        is_left_out[:, 0] = False
        ordered = ordered.masked_fill(is_left_out, -torch.inf)
    return torch.empty_like(scores).scatter_(1, order, ordered)
