"""The engine on a 7B model: tokens a second, first tokens, adapters, pauses, kernels of a step."""

import random
import statistics
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.gpu.client import GREEDY, Client
from benchmarks.gpu.models import large_model, random_adapter
from benchmarks.gpu.stage import Stage
from benchmarks.gpu.timing import count_kernels, seconds_of
from src.model.precision import dtype_name
from src.serving.engine.engine import Engine
from src.serving.lora.weights import LoadedAdapter
from src.serving.warm_up import warm_up


def run(stage: Stage) -> None:
    speed = ServeSpeed(stage, large_model(stage))
    short, middle, long = (8, 20, 40) if stage.is_tiny else (100, 900, 3500)
    for context in (short, middle, long):
        stage.section(speed.measure, "bare", 1, context, 0)
    stage.section(speed.measure, "bare, default sampling", 1, short, 0, {})
    for context in (short, middle, long):
        stage.section(speed.measure, "one adapter", 1, context, 1)
    stage.section(speed.measure, "8 adapters", 8, short, 8)
    stage.section(speed.measure, "bare, default sampling", 8, short, 0, {})
    for num_clients in (8, 16, 21):
        stage.section(speed.measure, "bare", num_clients, short, 0)
    for length in (4, 12, 30) if stage.is_tiny else (32, 512, 2048):
        stage.section(speed.measure_first_token, length)
    stage.section(speed.measure_cold_adapter)
    stage.section(speed.measure_pauses)
    stage.section(speed.count_kernels, "bare, greedy", 0, GREEDY)
    stage.section(speed.count_kernels, "one adapter, default sampling", 1, {})
    speed.close()


class ServeSpeed:
    """The clients of one engine."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self._stage, self._rng, self._seeds = stage, random.Random(0), count(1)
        self._new_tokens = 6 if stage.is_tiny else 96
        seconds = seconds_of(lambda: self._start(folder))
        embedding = self._engine.model.get_input_embeddings().weight.nbytes
        weights = {p.data_ptr(): p.nbytes for p in self._engine.model.parameters()}
        self._weight_bytes = sum(weights.values()) - embedding
        self._adapters = [self._new_adapter() for _ in range(8)]
        stage.record(
            "ready after",
            seconds,
            "s",
            note=f"model {self._engine.load_seconds:.1f} s, warm-up {self._warm_up_seconds:.1f} s; "
            f"{self._num_graphs()} graphs, {self._engine.num_slots} slots",
        )

    def _start(self, folder: Path) -> None:
        self._engine = Engine(folder, dtype=dtype_name(self._stage.dtype))
        self._warm_up_seconds = warm_up(self._engine, None)

    def close(self) -> None:
        """End the engine."""
        self._stage.record("graphs in the end", self._num_graphs())
        self._engine.close()

    def _num_graphs(self) -> int:
        graphs = self._engine.scheduler._batch._graphs
        return sum(not isinstance(graph, str) for graph in graphs._graphs.values()) if graphs else 0

    def _new_adapter(self) -> LoadedAdapter:
        shapes, seed = self._engine.linear_shapes, next(self._seeds)
        return random_adapter(shapes, rank=8, seed=seed, dtype=self._engine.dtype)

    def _ask(
        self,
        length: int,
        max_new_tokens: int,
        adapter: LoadedAdapter | None = None,
        **sampling: Any,
    ) -> Client:
        prompt_ids = [self._rng.randrange(3, 250) for _ in range(length)]
        return Client(self._engine, prompt_ids, adapter, max_new_tokens=max_new_tokens, **sampling)

    def _ask_all(
        self,
        num_clients: int,
        length: int,
        tokens: int,
        num_adapters: int,
        sampling: dict[str, Any],
    ) -> list[Client]:
        adapters = self._adapters[:num_adapters] or [None]
        clients = [
            self._ask(length, tokens, adapters[n % len(adapters)], **sampling)
            for n in range(num_clients)
        ]
        return [client.wait(self._stage.seconds_left) for client in clients]

    def measure(
        self,
        name: str,
        num_clients: int,
        length: int,
        num_adapters: int,
        sampling: dict[str, Any] = GREEDY,
    ) -> None:
        """Record the tokens a second of all, between the last first token and the first end."""
        # A shape is captured at its second step.
        self._ask_all(num_clients, length, self._new_tokens // 6, num_adapters, sampling)
        clients = self._ask_all(num_clients, length, self._new_tokens, num_adapters, sampling)
        begin = max(client.times[0] for client in clients)
        end = min(client.times[-1] for client in clients)
        times = [time for client in clients for time in client.times if begin < time <= end]
        rate = len(times) / max(end - begin, 1e-9)
        gaps = [gap for client in clients for gap in client.gaps]
        share = self._stage.share(rate / num_clients * self._weight_bytes, "copy bandwidth")
        self._stage.record(
            f"{num_clients} clients, {name}, context {length}",
            rate,
            "tokens/s",
            share=share,
            note=f"{1e3 * statistics.median(gaps):.2f} ms a token, longest {1e3 * max(gaps):.1f}",
        )

    def measure_first_token(self, length: int) -> None:
        clients = [self._ask(length, 1).wait(self._stage.seconds_left) for _ in range(12)]
        seconds = sorted(client.first_token_seconds for client in clients[2:])
        note = f"best {1e3 * seconds[0]:.1f}, worst {1e3 * seconds[-1]:.1f}"
        milliseconds = 1e3 * statistics.median(seconds)
        self._stage.record(f"first token, {length} tokens", milliseconds, "ms", note=note)

    def measure_cold_adapter(self) -> None:
        """Record the first token of an adapter that is not on the device yet, and then is."""
        cold, warm = [], []
        for _ in range(3):
            adapter = self._new_adapter()
            for times in (cold, warm):
                client = self._ask(8, 1, adapter, **GREEDY).wait(self._stage.seconds_left)
                times.append(1e3 * client.first_token_seconds)
        note = f"then {statistics.median(warm):.1f}"
        value = statistics.median(cold)
        self._stage.record("first token, adapter not on the device", value, "ms", note=note)

    def measure_pauses(self) -> None:
        """Record the longest pause of an answer while another kind of request joins."""
        length = 10 if self._stage.is_tiny else 500
        first = self._ask(8, self._new_tokens, **GREEDY)
        second = self._ask(length, 10, top_k=37, top_p=0.7, seed=5)
        for client in (second, first):
            client.wait(self._stage.seconds_left)
        name = f"longest pause while a prompt of {length} joins"
        self._stage.record(name, 1e3 * max(first.gaps), "ms")

    def count_kernels(self, name: str, num_adapters: int, sampling: dict[str, Any]) -> None:
        """Record what a token launches: an answer's kernels less those of a shorter one."""
        counts = []
        for tokens in (4, 24):
            self._ask_all(1, 8, tokens, num_adapters, sampling)
            counts.append(
                count_kernels(lambda n=tokens: self._ask_all(1, 8, n, num_adapters, sampling))
            )
        (few, few_seconds), (many, many_seconds) = counts
        note = f"{1e3 * (many_seconds - few_seconds) / 20:.2f} ms of the device"
        self._stage.record(f"kernels a token, {name}", (many - few) / 20, note=note)
