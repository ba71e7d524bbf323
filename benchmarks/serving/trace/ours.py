"""This project's part of the benchmark on a real model: `ours WORK` prints the seconds."""

import itertools
import queue
import sys
from pathlib import Path

from benchmarks.serving.trace.timing import print_best
from benchmarks.serving.trace.work import RealWork
from src.serving.engine.engine import Engine
from src.serving.engine.request import Event, Finished, Request
from src.serving.sampling import SamplingParams
from src.weights.adapter.adapter import read_adapter


def main() -> None:
    """Answer all requests again and again."""
    work = RealWork.load(Path(sys.argv[1]))
    engine = Engine(Path(work.base_model), dtype=work.dtype, can_speculate=False)
    adapters = [
        engine.load_adapter(read_adapter(Path(path), engine.linear_shapes), key=path)
        for path in work.adapters
    ]

    num_runs = itertools.count()

    def answer_all() -> None:
        first = next(num_runs)  # no prompt begins as one that is known
        ends: queue.SimpleQueue[Event] = queue.SimpleQueue()

        def take(event: Event) -> None:
            if isinstance(event, Finished):
                ends.put(event)

        for asked in work.requests:
            params = SamplingParams(
                max_new_tokens=asked.num_tokens, temperature=0, repetition_penalty=1.0
            )
            adapter = None if asked.adapter is None else adapters[asked.adapter]
            prompt = asked.prompt[first:] + asked.prompt[:first]
            request = Request(prompt, params, take, adapter=adapter, ignores_end=True)
            engine.submit(request)
        for _ in work.requests:
            ends.get()

    print_best(answer_all)
    engine.close()


if __name__ == "__main__":
    main()
