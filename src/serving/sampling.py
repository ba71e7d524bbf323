"""From the model's scores to the next token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from src.errors import UserError

GREEDY_BELOW = 1e-5
MIN_PENALTY = 1e-2


@dataclass(frozen=True)
class SamplingSettings:
    """How one request wants its tokens drawn."""

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


class Sampler:
    """Draws the tokens of one request; the same seed draws the same tokens."""

    def __init__(
        self,
        settings: SamplingSettings,
        *,
        prompt_ids: Sequence[int],
        end_ids: frozenset[int],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._settings = settings
        self._end_ids = torch.tensor(sorted(end_ids), device=device)
        self._generator = torch.Generator(device).manual_seed(settings.seed % 2**63)
        # As in the paper (CTRL, Keskar et al. 2019) and in transformers, the prompt counts as seen.
        self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self._seen[torch.tensor(prompt_ids, dtype=torch.long, device=device)] = True
        self._num_drawn = 0

    def draw(self, logits: torch.Tensor) -> int:
        """Return the next token for the scores of the last position (vocabulary,)."""
        settings = self._settings
        scores = logits.float().clone()
        if settings.repetition_penalty != 1:
            penalty = max(settings.repetition_penalty, MIN_PENALTY)
            penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
            scores = torch.where(self._seen, penalised, scores)
        if self._num_drawn < settings.min_new_tokens:
            scores[self._end_ids] = -torch.inf
        if settings.temperature < GREEDY_BELOW:
            token = scores.argmax()
        else:
            scores = keep_top(scores / settings.temperature, settings.top_k, settings.top_p)
            token = torch.multinomial(scores.softmax(-1), 1, generator=self._generator)[0]
        self._seen[token] = True
        self._num_drawn += 1
        return int(token)


def keep_top(scores: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Leave out all but the `top_k` best scores, then all but the best that make up `top_p`.

    At least the best one stays (nucleus sampling, Holtzman et al. 2019).
    """
    if 0 < top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(top_k).values[-1], -torch.inf)
    if top_p < 1:
        ordered, order = scores.sort(descending=True)
        probabilities = ordered.softmax(-1)
        is_left_out = probabilities.cumsum(-1) - probabilities >= top_p
        is_left_out[0] = False
        scores = scores.index_fill(0, order[is_left_out], -torch.inf)
    return scores
