"""How a request wants its tokens drawn."""

from dataclasses import dataclass

from src.errors import UserError

GREEDY_BELOW = 1e-5


@dataclass(frozen=True)
class SamplingParams:
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

    @property
    def is_greedy(self) -> bool:
        """Whether the best token is taken, without a draw."""
        return self.temperature < GREEDY_BELOW
