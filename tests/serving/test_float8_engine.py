"""Serving with frozen weights in float8 (`BASE_WEIGHTS=fp8`)."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from src.errors import UserError
from src.model.base_model import load_base_model
from src.model.core.float8 import convert
from src.serving.engine.engine import Engine
from src.serving.sampling import SamplingParams
from src.weights.adapter.adapter import read_adapter
from tests.serving.clients import Client

GREEDY = SamplingParams(max_new_tokens=48, temperature=0, repetition_penalty=1.0, top_p=1.0)


def test_answers_are_those_of_float8_layers_in_transformers(
    new_engine: Callable[..., Engine], adapters: dict[str, Path], base_dir: Path, capsys
):
    from peft import PeftModel

    engine = new_engine(in_float8=True)
    line = "float8: 12 of the 14 frozen products of all layers, emulated"
    assert line in capsys.readouterr().out
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapters["all"])
    adapter = engine.load_adapter(read_adapter(adapters["all"], engine.linear_shapes), key="all")
    ids = engine.tokenizer.encode("What is it?\n")
    exact = model(torch.tensor([ids])).logits
    for name, module in base.named_modules():
        if name.endswith("base_layer") and "down_proj" not in name:
            convert(module, for_training=False)
    assert 1e-3 < (model(torch.tensor([ids])).logits - exact).norm() / exact.norm() < 0.2
    for active in (adapter, None):
        answer = Client(engine, ids, GREEDY, adapter=active).answer()
        with torch.inference_mode(), nullcontext() if active else model.disable_adapter():
            scores = model(torch.tensor([ids + answer[:-1]])).logits[0, len(ids) - 1 :]
        # A number that lies between two of float8 may be rounded either way.
        chosen = scores.gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert (scores.amax(-1) - chosen).max() < 0.05 * scores.std()


def test_an_architecture_that_runs_in_transformers_is_refused(
    new_engine: Callable[..., Engine], base_dir: Path, tmp_path: Path
):
    config = GPTNeoXConfig(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=128, eos_token_id=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for path in base_dir.glob("tok*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"^BASE_WEIGHTS: expected none, found 'fp8': "):
        new_engine(tmp_path, in_float8=True)


def test_weights_in_4_bit_stay_as_they_are(
    new_engine: Callable[..., Engine], base_dir: Path, tmp_path: Path, capsys
):
    model = load_base_model(base_dir, dtype=torch.float32, device=torch.device("cpu"), in_4bit=True)
    model.save_pretrained(tmp_path)
    for path in base_dir.glob("tok*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    engine = new_engine(tmp_path, in_float8=True)
    assert "BASE_WEIGHTS=fp8 without effect on 4-bit weights" in capsys.readouterr().out
    ids = engine.tokenizer.encode("What is it?\n")
    found = [Client(e, ids, GREEDY).answer() for e in (engine, new_engine(tmp_path))]
    assert found[0] == found[1]
