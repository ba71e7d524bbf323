"""Clients of an engine, who ask and read."""

import queue
import random
from collections.abc import Sequence
from typing import Any

import torch

from src.serving.engine.engine import Engine
from src.serving.engine.request import Event, Finished, Request, Token
from src.serving.sampling import SamplingParams

GREEDY = SamplingParams(max_new_tokens=64, temperature=0, repetition_penalty=1.0, top_p=1.0)
TWELVE = SamplingParams(max_new_tokens=12, min_new_tokens=12, temperature=0, repetition_penalty=1.0)


class Client:
    """One request, and what has been read of its answer."""

    def __init__(
        self, engine: Engine, ids: Sequence[int], params: SamplingParams = GREEDY, **options
    ) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.tokens: list[Token] = []
        self.end: Finished | None = None
        request = Request(list(ids), params, self.events.put, **options)
        self.engine, self.sequence = engine, engine.submit(request)

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    def read(self, most: int | None = None) -> list[int]:
        """Read to the end, or until so many tokens have come in all."""
        while self.end is None and (most is None or len(self.tokens) < most):
            event = self.events.get(timeout=60)
            if isinstance(event, Finished):
                self.end = event
            else:
                self.tokens.append(event)
        return self.ids

    def answer(self) -> list[int]:
        """Read to the end of an answer without error."""
        self.read()
        assert self.end is not None
        if self.end.error is not None:
            raise self.end.error
        return self.ids

    def cancel(self) -> None:
        self.engine.cancel(self.sequence)


def random_prompts(num: int, vocab_size: int, *, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [
        [rng.randrange(3, vocab_size) for _ in range(rng.choice([1, 2, 7, 30, 64, 65, 130, 190]))]
        for _ in range(num)
    ]


def generate_twelve(model: Any, prompt: list[int], unused: list[int]) -> list[int]:
    """Return what transformers answers where an engine is asked for `TWELVE` tokens."""
    output = model.eval().generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=2,
        suppress_tokens=unused,
    )  # fmt: skip
    return output[0, len(prompt) :].tolist()
