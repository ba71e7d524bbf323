"""What is run before the first request, so that none waits for what only the first one needs."""

import itertools
import queue
import time
from collections.abc import Callable, Iterable, Iterator

from src.serving.engine.engine import Engine
from src.serving.engine.request import Event, Finished, Request
from src.serving.lora.weights import LoadedAdapter
from src.serving.sampling import SamplingParams

SHORTEST = 2
NUM_STEPS = 6
SAMPLING = (
    SamplingParams(max_new_tokens=NUM_STEPS, temperature=0, repetition_penalty=1),
    SamplingParams(max_new_tokens=NUM_STEPS),
)

ANY_ADAPTER = LoadedAdapter("warm-up", {})
"""Captured steps are the same for whatever an adapter holds."""


def warm_up(engine: Engine, adapter: LoadedAdapter | None) -> float:
    """Run what requests for this adapter will run, or those that bring one; return the seconds.

    Raises the error of a single short request; of others, which may be too much, it is printed.
    """
    started = time.monotonic()
    loads: Iterable[tuple[int, int]] = [(1, SHORTEST)]
    kinds, adapters = SAMPLING[-1:], [adapter]
    if engine.is_captured:
        if adapter is None:
            adapters.append(ANY_ADAPTER)
        buckets = engine.runner.length_bucket
        loads, kinds = captured_loads(engine.num_slots, engine.max_seq_len, buckets), SAMPLING
    runs = itertools.product(adapters, loads, kinds)
    for adapter, (num_requests, num_tokens), sampling in runs:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        for _ in range(num_requests):
            prompt_ids = [engine.tokenizer.eos_id] * num_tokens
            engine.submit(
                Request(prompt_ids, sampling, events.put, adapter=adapter, ignores_end=True)
            )
        ends = (event for event in iter(events.get, None) if isinstance(event, Finished))
        errors = [end.error for end in itertools.islice(ends, num_requests) if end.error]
        if errors and (num_requests, num_tokens) == (1, SHORTEST):
            raise errors[0]
        if errors:
            print(f"warm-up: {num_requests} x {num_tokens} tokens: {errors[0]}", flush=True)
    engine.totals.restart()
    return time.monotonic() - started


def captured_loads(
    num_slots: int, max_seq_len: int, length_bucket: Callable[[int], int]
) -> Iterator[tuple[int, int]]:
    """Yield (requests, tokens of each prompt) that meet each number of rows in each length bucket.

    The shorter prompts are the beginning of the longer ones, and are not read again.
    """
    num_rows = {min(1 << n, num_slots) for n in range((num_slots - 1).bit_length() + 1)}
    num_tokens = SHORTEST
    while num_tokens + NUM_STEPS <= max_seq_len:
        yield from ((n, num_tokens) for n in sorted(num_rows))
        num_tokens = length_bucket(num_tokens + NUM_STEPS) + 1
