"""Each example of a Phi-3 for long texts is rotated by its own length, whoever shares its row."""

from pathlib import Path
from typing import Any

import pytest
import torch

from src.model.base_model import load_base_model
from src.model.core.attention import Spans
from src.model.core.decoder import Decoder
from src.model.core.proof import open_proven
from tests.model.batches import CPU, assert_same, build_model, cut, gradients, make_batch
from tests.model.families import LONGROPE, SHORT_LENGTH, make_family


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_family(tmp_path / "phi3", "phi3", **LONGROPE)
    return tmp_path / "phi3"


def open_both(folder: Path) -> tuple[Any, Decoder]:
    model = load_base_model(folder, dtype=torch.float32, device=CPU)
    decoder = open_proven(model, Decoder)
    assert isinstance(decoder, Decoder)
    return model, decoder


@pytest.mark.parametrize("lengths", [(5, 23), (24, 25, 40, 1, 9), (60,), (25, 26)])
def test_scores_and_gradients_of_packed_examples_are_those_of_each_alone(
    folder: Path, lengths: tuple[int, ...]
):
    module = build_model(folder)
    batch = make_batch(*lengths)
    alone = gradients(module, cut(batch))
    assert module.use_decoder() is None
    assert_same(gradients(module, [batch]), alone)
    assert_same(gradients(module, cut(batch)), alone)


@torch.no_grad()
@pytest.mark.parametrize("num_tokens", [SHORT_LENGTH, SHORT_LENGTH + 1, 130])
def test_scores_are_those_of_transformers(folder: Path, num_tokens: int):
    """After longer and after shorter texts."""
    model, decoder = open_both(folder)
    for length in (7, num_tokens, 90, num_tokens):
        ids = torch.arange(3, 3 + length)
        decoder.grow(length)
        spans = Spans.between((0, length), CPU)
        scores = decoder.scores(decoder.hidden(ids, torch.arange(length), spans))
        expected = model(ids[None], use_cache=False).logits[0]
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_long_texts_are_rotated_otherwise(folder: Path):
    """The comparisons above would notice: their first tokens have other scores."""
    _, decoder = open_both(folder)
    decoder.grow(SHORT_LENGTH + 1)
    ids = torch.arange(3, 3 + SHORT_LENGTH + 1)

    def score(num_tokens: int) -> torch.Tensor:
        spans = Spans.between((0, num_tokens), CPU)
        hidden = decoder.hidden(ids[:num_tokens], torch.arange(num_tokens), spans)
        return decoder.scores(hidden)[:SHORT_LENGTH]

    assert (score(SHORT_LENGTH) - score(SHORT_LENGTH + 1)).norm() > 0.01 * score(
        SHORT_LENGTH
    ).norm()
