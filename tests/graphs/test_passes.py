"""A pass that is replayed from a graph, with padding, learns what a plain pass learns."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from src.data.collate import Batch
from src.graphs.passes import MAX_TOKENS, PassGraphs
from src.model.adapter import adapter_parameters, flatten
from tests.model.batches import build_model, make_batch
from tests.model.families import LONGROPE, make_family
from tests.serving.fake_graph import FakeCapture

BATCHES = [
    make_batch(*lengths) for lengths in ((5, 19, 1, 33), (90, 30), (2,), (60, 60, 8), (200,))
]
NUM_SIZES = 4  # (256 tokens, and 128 with one to four quarters of target tokens)


class Trained:
    """A model whose passes can be replayed."""

    def __init__(self, base_dir: Path, capture: FakeCapture) -> None:
        self.loss = build_model(base_dir)
        self.parameters = [p for _, p in adapter_parameters(self.loss.model)]
        assert self.loss.use_decoder() is None
        self.lines: list[str] = []
        self.graphs = PassGraphs(self.plain, capture, self.lines.append)

    def plain(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        loss = self.loss(**inputs)
        return loss, flatten(torch.autograd.grad(loss, self.parameters))

    def assert_same(self, batch: Batch) -> None:
        loss, gradient = self.graphs.run(batch)
        expected_loss, expected = self.plain(vars(batch))
        torch.testing.assert_close(loss, expected_loss)
        assert (gradient - expected).norm() < 1e-5 * expected.norm()


def test_replays_learn_what_plain_passes_learn(base_dir: Path):
    trained = Trained(base_dir, capture := FakeCapture())
    for _ in range(2):
        for batch in BATCHES:
            trained.assert_same(batch)
        for parameter in trained.parameters:
            parameter.data.mul_(1.1)  # as a step of the optimizer does, in place
    assert capture.num_captures == NUM_SIZES
    assert capture.num_replays == 2 * len(BATCHES)
    assert trained.lines == []


def test_replays_rotate_each_example_by_its_own_length(tmp_path: Path):
    """Padding, which may be longer than any of them, changes nothing."""
    make_family(tmp_path / "phi3", "phi3", **LONGROPE)
    trained = Trained(tmp_path / "phi3", capture := FakeCapture())
    for lengths in ((5, 23), (24, 25, 40), (24, 24, 24), (26, 9), (100, 70), (24, 25, 40)):
        trained.assert_same(make_batch(*lengths))
    assert capture.num_replays == 6
    assert trained.lines == []


def test_padding_that_is_seen_is_noticed(base_dir: Path):
    """The comparison above could fail: one token more is another gradient."""
    trained = Trained(base_dir, FakeCapture())
    batch = make_batch(60, 60, 8)
    _, gradient = trained.graphs.run(batch)
    _, other = trained.plain(vars(replace(batch, boundaries=(0, 60, 128))))
    assert not torch.allclose(gradient, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reason", ["refused", "differs"])
def test_passes_run_plainly_where_a_graph_fails(base_dir: Path, reason: str):
    trained = Trained(base_dir, FakeCapture(refuses=lambda number: reason == "refused"))
    if reason == "differs":
        plain, calls = trained.plain, iter(range(10))
        trained.graphs._run = lambda inputs: (  # type: ignore[assignment]
            (found := plain(inputs))[0],
            found[1] * (1 + next(calls)),
        )
    loss, gradient = trained.graphs.run(BATCHES[0])
    expected_loss, expected = trained.plain(vars(BATCHES[0]))
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert not trained.graphs.can_run(BATCHES[0])
    (line,) = trained.lines
    assert "without CUDA graphs" in line


def test_a_gradient_beyond_float16_proves_nothing_of_a_graph(base_dir: Path):
    """The loss scale is made smaller, and the same batch comes again."""
    trained = Trained(base_dir, capture := FakeCapture())
    plain = trained.plain
    trained.graphs._run = lambda inputs: (  # type: ignore[assignment]
        (found := plain(inputs))[0],
        found[1] * torch.inf,
    )
    assert not trained.graphs.run(BATCHES[0])[1].isfinite().any()
    trained.graphs._run = plain
    for _ in range(2):
        trained.assert_same(BATCHES[0])
    assert (capture.num_captures, capture.num_replays, trained.lines) == (1, 2, [])


def test_long_passes_run_plainly(base_dir: Path):
    graphs = Trained(base_dir, FakeCapture()).graphs
    assert graphs.can_run(make_batch(MAX_TOKENS))
    assert not graphs.can_run(make_batch(MAX_TOKENS, 1))
