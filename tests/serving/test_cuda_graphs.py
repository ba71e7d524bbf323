"""Captured steps draw what plain steps draw, whatever the requests in the batch ask for."""

import itertools
from collections.abc import Hashable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from src.graphs.step_graphs import CudaGraphs, Step
from src.serving.engine.engine import Engine
from src.serving.lora.weights import LoadedAdapter
from src.serving.sampling import SamplingParams
from tests.serving.clients import GREEDY, Client, random_prompts
from tests.serving.fake_graph import FakeCapture

PARAMS = (
    replace(GREEDY, max_new_tokens=24),
    SamplingParams(max_new_tokens=24, seed=3),
    SamplingParams(max_new_tokens=24, seed=4, top_k=5, top_p=1.0, repetition_penalty=1.0),
    replace(GREEDY, max_new_tokens=24, repetition_penalty=1.3, min_new_tokens=9),
)


@pytest.fixture
def capture() -> FakeCapture:
    return FakeCapture()


@pytest.fixture
def captured(base_dir: Path, capture: FakeCapture) -> Iterator[Engine]:
    engine = Engine(base_dir, max_slots=8, max_adapters=4, dtype="float32", capture=capture)
    yield engine
    engine.close()


def ask_all(engine: Engine, loaded: dict[str, LoadedAdapter]) -> list[list[int]]:
    """Ask for all kinds of answers, several at once, in another mix each time."""
    adapters = [None, None, loaded["all"], loaded["few"], loaded["rank-40"]]
    asked = list(itertools.product(PARAMS, adapters)) * 3
    prompts = random_prompts(len(asked), engine.vocab_size, seed=3)
    clients = [
        Client(engine, prompt, params, adapter=adapter)
        for prompt, (params, adapter) in zip(prompts, asked, strict=True)
    ]
    return [client.answer() for client in clients]


def test_answers_are_those_of_plain_steps(engine, captured, capture, loaded):
    assert ask_all(captured, loaded) == ask_all(engine, loaded)
    assert capture.num_replays > 5 * capture.num_captures > 20


def test_a_shape_that_leaves_something_out_is_noticed(
    engine, captured, capture, loaded, monkeypatch
):
    """The control: what a captured step takes from Python stays as it was."""
    run = CudaGraphs.run

    def run_by_rows_alone(self: CudaGraphs, shape: tuple[int, ...], step: Step) -> torch.Tensor:
        return run(self, shape[0], step)

    monkeypatch.setattr(CudaGraphs, "run", run_by_rows_alone)
    assert ask_all(captured, loaded) != ask_all(engine, loaded)
    assert capture.num_replays > 20


def test_an_adapter_of_a_higher_rank_voids_no_graph(engine, captured, capture, loaded):
    def answer(engine: Engine, name: str) -> list[int]:
        return Client(engine, [5, 6, 7], GREEDY, adapter=loaded[name]).answer()

    expected = answer(engine, "all")
    assert answer(captured, "all") == expected
    answer(captured, "rank-40")
    num_captures = capture.num_captures
    for name in ("all", "rank-1", "few"):
        answer(captured, name)
    assert capture.num_captures == num_captures
    assert answer(captured, "all") == expected


def test_steps_that_cannot_be_captured_run_plainly(engine, base_dir, loaded, capsys):
    capture = FakeCapture(refuses=lambda number: number % 2 == 0)
    captured = Engine(base_dir, max_slots=8, max_adapters=4, dtype="float32", capture=capture)
    assert ask_all(captured, loaded) == ask_all(engine, loaded)
    captured.close()
    assert "runs without a CUDA graph: operation not permitted" in capsys.readouterr().out
    num_captures = capture.num_captures
    assert capture.num_replays > num_captures


class Runs:
    """Counts what a graph does with steps of a few shapes."""

    def __init__(self, max_graphs: int) -> None:
        self.done: list[str] = []
        self.graphs = CudaGraphs(self.capture, max_graphs=max_graphs)

    def capture(self, step: Step):
        if "bad" in self.name:
            raise RuntimeError("cannot be captured")
        self.done.append("capture")
        return (lambda: self.done.append("replay")), torch.zeros(1)

    def step(self) -> torch.Tensor:
        self.done.append("step")
        return torch.zeros(1)

    def run(self, *shapes: Hashable) -> list[str]:
        self.done = []
        for shape in shapes:
            self.name = str(shape)
            self.graphs.run(shape, self.step)
        return self.done


def test_a_shape_is_captured_at_its_second_call():
    runs = Runs(max_graphs=2)
    assert runs.run("a", "a", "a") == ["step", "capture", "replay", "replay"]
    assert runs.run("bad", "bad", "bad") == ["step", "step", "step"]


def test_the_least_recently_used_graph_goes():
    runs = Runs(max_graphs=2)
    runs.run("a", "a", "b", "b")
    assert runs.run("a", "c", "a") == ["replay", "step", "replay"]
    assert runs.run("b") == ["step"]
    runs.run("bad", "bad", "d", "e")
    assert runs.run("bad") == ["step"]
