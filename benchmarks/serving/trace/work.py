"""What a way of serving a real model is asked, as a file for its process."""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

MEAN_PROMPT, MEAN_ANSWER = 161, 338
"""Tokens of ShareGPT's conversations (Kwon et al. 2023, Efficient Memory Management for Large
Language Model Serving with PagedAttention, figure 11)."""
SHAPE = 1.0
"""The standard deviation of the logarithm of a length."""
SHARE = 4
"""Lengths are that part of the trace's, so that the slowest peer comes to an end."""
LONGEST = 512


@dataclass(frozen=True)
class Asked:
    """One request."""

    prompt: list[int]
    num_tokens: int
    """Of its answer."""
    adapter: int | None = None


@dataclass(frozen=True)
class RealWork:
    """Requests that come at once."""

    base_model: str
    dtype: str
    requests: list[Asked]
    adapters: list[str]
    """Folders."""

    @property
    def num_tokens(self) -> int:
        """All tokens of the answers."""
        return sum(asked.num_tokens for asked in self.requests)

    def save(self, path: Path) -> None:
        """Write it for the process that does the work."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "RealWork":
        """Read what `save` wrote."""
        found = json.loads(path.read_text())
        return cls(**{**found, "requests": [Asked(**asked) for asked in found["requests"]]})


def even_requests(num: int, *, prompt: int, answer: int, vocab_size: int) -> list[Asked]:
    """Return requests of the same length."""
    rng = random.Random(num)
    return [Asked(_prompt(rng, prompt, vocab_size), answer) for _ in range(num)]


def mixed_requests(num: int, *, vocab_size: int, num_adapters: int) -> list[Asked]:
    """Return requests of log-normal lengths, with the adapters in turn."""
    rng = random.Random(num)
    prompts, answers = _lengths(rng, MEAN_PROMPT), _lengths(rng, MEAN_ANSWER)
    return [
        Asked(
            _prompt(rng, next(prompts), vocab_size),
            next(answers),
            number % num_adapters if num_adapters else None,
        )
        for number in range(num)
    ]


def _lengths(rng: random.Random, mean: float) -> Iterator[int]:
    while True:
        length = rng.lognormvariate(math.log(mean / SHARE) - SHAPE**2 / 2, SHAPE)
        yield min(max(4, round(length)), LONGEST)


def _prompt(rng: random.Random, length: int, vocab_size: int) -> list[int]:
    return [rng.randrange(20, vocab_size) for _ in range(length)]
