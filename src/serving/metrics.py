"""What is reported of the process, beside what is reported of each request."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from src.host_memory import process_memory
from src.serving.engine.engine import Engine
from src.serving.lora.host_cache import AdapterStore
from src.weights.cache.cache import WeightsCache


class ProcessMetrics:
    """Counts requests, and gathers the counts of those who do the work."""

    def __init__(self, engine: Engine, store: AdapterStore, cache: WeightsCache) -> None:
        self._engine, self._store, self._cache = engine, store, cache
        self._num_served = self._num_failed = self._num_canceled = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request by how it ends."""
        try:
            yield
        except Exception:
            self._num_failed += 1
            raise
        except BaseException:  # of a canceled task, a closed stream, or Cog's own cancel
            self._num_canceled += 1
            raise
        self._num_served += 1

    def now(self) -> dict[str, Any]:
        """Return the counts since the process was ready, and what it holds at this moment."""
        engine, totals = self._engine, self._engine.totals
        metrics = {
            "uptime_seconds": round(time.monotonic() - totals.started_at, 3),
            "requests_served": self._num_served,
            "requests_failed": self._num_failed,
            "requests_canceled": self._num_canceled,
            "answers_running": engine.scheduler.num_running,
            "answers_waiting": engine.scheduler.num_waiting,
            "input_token_count": totals.num_computed_tokens,
            "cached_input_token_count": totals.num_cached_tokens,
            "output_token_count": totals.num_output_tokens,
            "proposed_token_count": totals.num_proposed,
            "accepted_token_count": totals.num_accepted,
            "preemption_count": totals.num_preempted,
            "tokens_per_second": round(totals.tokens_per_second(), 2),
            "adapters_on_disk": asdict(self._cache.use()),
            "adapters_in_memory": asdict(self._store.use),
            "adapters_on_device": asdict(engine.runner.lora.use),
            "memory_bytes": process_memory(),
        }
        if engine.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(engine.device)
            metrics["device_memory_bytes"] = total - free
        return metrics
