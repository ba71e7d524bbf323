"""How long a running answer waits for its next token while a long prompt is read beside it."""

import itertools
import random
import statistics
import threading
import time
from collections.abc import Mapping
from typing import Any

from src.serving.engine.engine import Engine
from src.serving.engine.request import Event, Finished, Request
from src.serving.sampling import SamplingParams

PROMPT_TOKENS = 4096
NUM_ALONE = 100
"""Tokens of the answer before the prompt comes."""
ENDLESS = SamplingParams(max_new_tokens=4000, temperature=0, repetition_penalty=1.0)


def measure_gaps(engine: Engine, *, num_prompt_tokens: int = PROMPT_TOKENS) -> dict[str, Any]:
    """Return the median gap between two tokens of an answer, and the longest beside a prompt."""
    rng = random.Random(5)
    at: list[float] = []
    is_under_way, is_read, has_ended = (threading.Event() for _ in range(3))

    def take(event: Event) -> None:
        if isinstance(event, Finished):
            has_ended.set()
            return
        at.append(time.monotonic())
        if len(at) == NUM_ALONE:
            is_under_way.set()

    running = engine.submit(Request([5, 6, 7], ENDLESS, take, ignores_end=True))
    is_under_way.wait()
    began = time.monotonic()
    prompt = [rng.randrange(3, 300) for _ in range(num_prompt_tokens)]
    one = SamplingParams(max_new_tokens=1, temperature=0)
    engine.submit(Request(prompt, one, lambda _: is_read.set()))
    is_read.wait()
    ended = time.monotonic()
    engine.cancel(running)
    has_ended.wait()
    gaps = [(after, after - before) for before, after in itertools.pairwise(at)]
    beside = [gap for after, gap in gaps if began < after <= ended]
    return {
        "prompt_tokens": num_prompt_tokens,
        "median_alone": statistics.median(gap for after, gap in gaps if after <= began),
        "median_beside": statistics.median(beside),
        "longest_beside": max(beside),
        "seconds_to_first_token": ended - began,
    }


def show_gaps(gaps: Mapping[str, float]) -> str:
    """Return a sentence about an answer that runs while a long prompt is read."""
    alone, beside, longest = (
        f"{1000 * gaps[name]:,.1f} ms"
        for name in ("median_alone", "median_beside", "longest_beside")
    )
    return (
        f"While a prompt of {gaps['prompt_tokens']:,} tokens is read, the tokens of a running "
        f"answer are {beside} apart (median) and {longest} at most; alone {alone}. The prompt's "
        f"first token comes after {gaps['seconds_to_first_token']:,.1f} s."
    )
