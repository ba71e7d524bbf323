"""What runs in transformers answers in company what it answers alone: rows share their passes."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from src.chat.tokenizer import Tokenizer
from src.serving.engine.engine import Engine
from src.serving.model.padded_cache import join, take
from src.serving.model.transformers_model import TransformersRunner
from tests.model.architectures import SIZES, make_architecture
from tests.serving.clients import TWELVE, Client, generate_twelve

OPTIONS = {
    "gpt2": {},  # positions that are learned
    "bloom": {},  # no positions but distances
    "cohere2": {"sliding_window": 20},
    "falcon_h1": {},  # attention and a state in every layer
    "mamba": {**SIZES, "state_size": 8},  # states alone
}
PROMPTS = [list(range(3, 60, 2)), [9, 5, 30], list(range(40, 70, 3)), [7], list(range(3, 250, 9))]


@pytest.mark.parametrize("architecture", OPTIONS)
def test_answers_in_company_are_those_of_transformers(
    architecture: str, tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    make_architecture(tmp_path / "base", architecture, **OPTIONS[architecture])
    for file in base_dir.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "base")
    num_rows: list[int] = []
    plain = TransformersRunner._logits

    def count(runner: TransformersRunner, slots: list, num_new: int) -> torch.Tensor:
        num_rows.append(len(slots))
        return plain(runner, slots, num_new)

    engine = Engine(tmp_path / "base", max_slots=3, dtype="float32")
    monkeypatch.setattr(TransformersRunner, "_logits", count)
    try:
        # Two wait for a slot: rows come and go.
        clients = [Client(engine, prompt, TWELVE) for prompt in PROMPTS]
        served = [client.answer() for client in clients]
    finally:
        engine.close()
    unused = Tokenizer(tmp_path / "base").unused_rows(400)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    assert served == [generate_twelve(model, prompt, unused) for prompt in PROMPTS]
    assert max(num_rows) == 3


def test_rows_that_would_answer_otherwise_decode_alone(
    tmp_path: Path, base_dir: Path, capsys: pytest.CaptureFixture[str]
):
    """A rotary embedding that depends on the longest row."""
    ropes = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    make_architecture(tmp_path, "llama", rope_parameters=ropes)
    for file in base_dir.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    Engine(tmp_path, max_slots=3, dtype="float32").close()
    line = "rows decode one after the other: its positions depend on the other rows\n"
    assert line in capsys.readouterr().out


def test_a_cache_that_is_not_known_is_not_joined():
    with pytest.raises(TypeError, match="it keeps a list"):
        join([[], []], [1, 2])


def test_what_is_joined_is_parted_again():
    torch.manual_seed(0)
    rows = []
    for length in (3, 7):
        rows.append(DynamicCache())
        rows[-1].update(torch.randn(1, 2, length, 4), torch.randn(1, 2, length, 4), 0)
    whole = join(rows, [3, 7])
    assert whole.layers[0].keys.shape == (2, 2, 7, 4)
    for number, (row, length) in enumerate(zip(rows, (3, 7), strict=True)):
        part = take(whole, number, length).layers[0]
        assert torch.equal(part.keys, row.layers[0].keys)
        assert torch.equal(part.values, row.layers[0].values)
