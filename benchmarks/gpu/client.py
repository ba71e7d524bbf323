"""A client of an engine, which notes when each token comes."""

import queue
import time
from typing import Any

from src.serving.engine.engine import Engine
from src.serving.engine.request import Event, Finished, Request
from src.serving.lora.weights import LoadedAdapter
from src.serving.sampling import SamplingParams

GREEDY: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1.0, "top_p": 1.0}


class Client:
    """One request and its answer."""

    def __init__(
        self,
        engine: Engine,
        prompt_ids: list[int],
        adapter: LoadedAdapter | None = None,
        *,
        ignores_end: bool = True,
        **sampling: Any,
    ) -> None:
        self.ids: list[int] = []
        self.times: list[float] = []
        self._ended: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self.started = time.perf_counter()
        engine.submit(
            Request(
                prompt_ids,
                SamplingParams(**sampling),
                self._take,
                adapter=adapter,
                ignores_end=ignores_end,
            )
        )

    def _take(self, event: Event) -> None:
        if isinstance(event, Finished):
            self._ended.put(event)
        else:
            self.times.append(time.perf_counter())
            self.ids.append(event.id)

    def wait(self, seconds: float) -> "Client":
        """Wait for the end of the answer; raises the request's error."""
        end = self._ended.get(timeout=max(1.0, seconds))
        if end.error:
            raise end.error
        return self

    @property
    def first_token_seconds(self) -> float:
        """How long the first token took."""
        return self.times[0] - self.started

    @property
    def gaps(self) -> list[float]:
        """The seconds between tokens."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
