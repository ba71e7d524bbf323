"""From the model's scores to the next token, for all rows of a step at once."""

from collections.abc import Iterable, Sequence

import torch

from src.serving.sampling.noise import Noise, noise_key
from src.serving.sampling.params import SamplingParams

MIN_PENALTY = 1e-2


class Sampler:
    """Holds what the requests in the slots want, where a captured step can read it."""

    def __init__(
        self, *, num_slots: int, vocab_size: int, end_ids: Iterable[int], device: torch.device
    ) -> None:
        def rows(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.full((num_slots,), value, dtype=dtype, device=device)

        self._device, self._vocab_size = device, vocab_size
        self._end_ids = torch.tensor(sorted(end_ids), device=device)
        self._noise = Noise(vocab_size, device)
        # As in the paper (CTRL, Keskar et al. 2019) and in transformers, the prompt counts as seen.
        self._seen = torch.zeros((num_slots, vocab_size), dtype=torch.bool, device=device)
        self.allowed = torch.ones((num_slots, vocab_size), dtype=torch.bool, device=device)
        """What a grammar lets through; read for rows that have one."""
        self._penalty = rows(1)
        self._temperature, self._is_greedy = rows(1), rows(1, torch.bool)
        self._top_k, self._top_p = rows(vocab_size, torch.long), rows(1)
        self._end_from = rows(0, torch.long)
        self._key = rows(0, torch.long)
        self._features: list[frozenset[str]] = [frozenset()] * num_slots

    def set(
        self,
        slot: int,
        settings: SamplingParams,
        *,
        prompt_ids: Sequence[int],
        has_grammar: bool = False,
    ) -> None:
        """Draw the tokens of this slot by the sampling of a new request."""
        features = set()
        if settings.repetition_penalty != 1:
            features.add("penalty")
            self._penalty[slot] = max(settings.repetition_penalty, MIN_PENALTY)
            self._seen[slot] = False
            self._seen[slot, torch.tensor(prompt_ids, dtype=torch.long, device=self._device)] = True
        else:
            self._penalty[slot] = 1
        self._end_from[slot], self.allowed[slot] = 0, True
        if has_grammar:
            features.add("grammar")
        elif settings.min_new_tokens > 0:
            features.add("min_tokens")
            self._end_from[slot] = len(prompt_ids) + settings.min_new_tokens
        self._is_greedy[slot] = settings.is_greedy
        self._temperature[slot] = 1 if settings.is_greedy else settings.temperature
        self._top_k[slot], self._top_p[slot] = self._vocab_size, 1
        if not settings.is_greedy:
            features.add("noise")
            if 0 < settings.top_k < self._vocab_size:
                features.add("top_k")
                self._top_k[slot] = settings.top_k
            if settings.top_p < 1:
                features.add("top_p")
                self._top_p[slot] = settings.top_p
        self._key[slot] = noise_key(settings.seed)
        self._features[slot] = frozenset(features)

    def clear(self, slot: int) -> None:
        """Forget the sampling of a request that is done."""
        self._features[slot] = frozenset()

    def features(self, rows: slice) -> frozenset[str]:
        """Return which of the steps any of these rows needs."""
        return frozenset().union(*self._features[rows])

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

    def draw_ahead(
        self,
        logits: torch.Tensor,  # (tokens, vocabulary) after the last token and after each proposed
        position: int,
        proposed: Sequence[int],
        *,
        slot: int,
    ) -> list[int]:
        """Return the tokens drawn from this position on: proposed ones that stand, and one more."""
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


def num_accepted(proposed: Sequence[int], drawn: Sequence[int]) -> int:
    """Return how many first tokens of a proposal are those that were drawn."""
    pairs = zip(proposed, drawn, strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), len(proposed))


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
