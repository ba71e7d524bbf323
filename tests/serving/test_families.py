"""Each family of our decoder answers as transformers and PEFT do, token by token."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from src.chat.tokenizer import Tokenizer
from src.model.adapter import adapter_parameters, copy_to_cpu, save_adapter
from src.model.core.families.table import FAMILIES
from src.serving.engine.engine import Engine
from src.weights.adapter.adapter import read_adapter
from tests.model.batches import build_model
from tests.model.families import make_family
from tests.serving.clients import TWELVE, Client, generate_twelve

PROMPTS = [list(range(3, 40, 2)), [9, 5, 30]]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_transformers_and_peft(family: str, tmp_path: Path, base_dir: Path):
    folder, saved = tmp_path / family, tmp_path / "adapter"
    make_family(folder, family)
    for file in base_dir.glob("tokenizer*"):
        shutil.copy(file, folder)
    targets = write_adapter(folder, saved)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    engine = Engine(folder, max_slots=3, dtype="float32")
    try:
        assert engine.runner.is_static  # it is our decoder
        adapter = engine.load_adapter(read_adapter(saved, engine.linear_shapes), key="random")
        clients = [
            Client(engine, prompt, TWELVE, adapter=a) for a in (None, adapter) for prompt in PROMPTS
        ]
        served = [client.answer() for client in clients]
    finally:
        engine.close()
    unused = Tokenizer(folder).unused_rows(400)
    expected = [generate_twelve(base, prompt, unused) for prompt in PROMPTS]
    adapted = PeftModel.from_pretrained(base, saved)
    expected += [generate_twelve(adapted, prompt, unused) for prompt in PROMPTS]
    assert served == expected
    assert served[:2] != served[2:]
    assert len(targets) >= 4


def write_adapter(folder: Path, saved: Path) -> list[str]:
    model = build_model(folder).model
    saved.mkdir()
    named = list(adapter_parameters(model))
    for _, parameter in named:
        torch.nn.init.normal_(parameter, std=0.4)
    targets = sorted({name.split(".")[-3] for name, _ in named})
    save_adapter(
        saved, copy_to_cpu(named), base_model=str(folder), target_modules=targets,
        rank=4, alpha=8, dropout=0.0,
    )  # fmt: skip
    return targets
