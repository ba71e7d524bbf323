"""Whatever a folder of weights holds, the base model's own numbers stay what they were."""

import hashlib
import os
from pathlib import Path

import pytest
import torch

from src.cli.tiny_model import make_base_model
from src.errors import UserError
from src.serving.predictor import TextPredictor
from tests.serving.request import answer
from tests.weights.adapters import CONFIG, HARMLESS, REFUSED, good_tensors, write


def base_hash(predictor: TextPredictor) -> str:
    """Return the SHA-256 of all numbers of the base model in memory, with their names."""
    digest = hashlib.sha256()
    state = predictor._engine.model.state_dict()
    assert len(state) > 10
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> TextPredictor:
    folder = tmp_path_factory.mktemp("stays")
    make_base_model(
        folder / "base", ["What is it?"] * 9, vocab_size=300, hidden_size=16, num_layers=2,
        num_heads=2, num_key_value_heads=1, max_seq_len=64,
    )  # fmt: skip
    (folder / "weights").mkdir()
    before = dict(os.environ)
    os.environ.update(
        BASE_MODEL=str(folder / "base"),
        WEIGHTS_DIR=str(folder / "weights"),
        WEIGHTS_CACHE=str(folder / "cache"),
    )
    predictor = TextPredictor(None)
    os.environ.clear()
    os.environ.update(before)
    return predictor


def test_no_adapter_changes_the_base_model(predictor: TextPredictor, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a pickle that is read would leave its mark
    assert predictor._weights_dir is not None
    own_hash, own_answer = base_hash(predictor), answer(predictor, None)
    num_refused = num_loaded = 0
    for name, make in {**REFUSED, **HARMLESS}.items():
        folder = predictor._weights_dir / name
        folder.mkdir()
        make(folder)
        try:
            answer(predictor, name)
            num_loaded += 1
            assert name in HARMLESS, name
        except UserError:
            num_refused += 1
            assert name in REFUSED, name
        assert base_hash(predictor) == own_hash, name
        assert answer(predictor, None) == own_answer, name
    assert (num_refused, num_loaded) == (len(REFUSED), len(HARMLESS))
    assert list(tmp_path.iterdir()) == []


def test_a_good_adapter_changes_the_answer_and_not_the_base(predictor: TextPredictor):
    """The control: the answers above could have differed."""
    assert predictor._weights_dir is not None
    own_hash, own_answer = base_hash(predictor), answer(predictor, None)
    folder = predictor._weights_dir / "strong"
    folder.mkdir()
    write(folder, {name: 9 * tensor for name, tensor in good_tensors().items()}, CONFIG)
    assert answer(predictor, "strong") != own_answer
    assert base_hash(predictor) == own_hash


def test_the_hash_sees_one_changed_number(predictor: TextPredictor):
    own_hash = base_hash(predictor)
    weight = predictor._engine.model.lm_head.weight
    old = weight[0, 0].item()
    with torch.inference_mode():
        weight[0, 0] = old + 1
        assert base_hash(predictor) != own_hash
        weight[0, 0] = old
    assert base_hash(predictor) == own_hash
