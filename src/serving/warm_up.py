"""What is run before the first request, so that none waits for what only the first one needs."""

import itertools
import queue
import time
from collections.abc import Iterator

from src.serving.engine import Engine
from src.serving.forward import bucket_of
from src.serving.request import Event, Finished, Generation
from src.serving.sampling import SamplingSettings

NUM_STEPS = 6
WISHES = (
    SamplingSettings(max_new_tokens=NUM_STEPS, temperature=0, repetition_penalty=1),
    SamplingSettings(max_new_tokens=NUM_STEPS),
)


def warm_up(engine: Engine) -> float:
    """Run what requests will run; return the seconds it took."""
    started = time.monotonic()
    loads = captured_loads(engine.num_slots, engine.context) if engine.is_captured else [(1, 2)]
    for (num_requests, num_tokens), wishes in itertools.product(loads, WISHES):
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        for _ in range(num_requests):
            prompt_ids = [engine.tokenizer.eos_id] * num_tokens
            engine.submit(Generation(prompt_ids, wishes, events.put, ignores_end=True))
        num_ended = 0
        while num_ended < num_requests:
            event = events.get()
            if isinstance(event, Finished):
                num_ended += 1
                if event.error is not None:
                    raise event.error
    engine.totals.restart()
    return time.monotonic() - started


def captured_loads(num_slots: int, context: int) -> Iterator[tuple[int, int]]:
    """Yield (requests, tokens of each prompt) that meet each number of rows in each length bucket.

    The shorter prompts are the beginning of the longer ones, and are not read again.
    """
    num_rows = {min(1 << n, num_slots) for n in range((num_slots - 1).bit_length() + 1)}
    num_tokens = 2
    while num_tokens + NUM_STEPS <= context:
        yield from ((n, num_tokens) for n in sorted(num_rows))
        num_tokens = bucket_of(num_tokens + NUM_STEPS, context) + 1
