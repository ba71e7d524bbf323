"""Each architecture learns from every example alone, and is served as transformers and PEFT do."""

import shutil
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from src.chat.tokenizer import Tokenizer
from src.errors import UserError
from src.model.isolation import find_neighbour_effect
from src.model.shape import check_architecture
from src.serving.engine.engine import Engine
from src.training.lora_model import try_sharing_rows
from src.weights.adapter.adapter import read_adapter
from tests.model.architectures import ARCHITECTURES, make_architecture
from tests.model.batches import assert_same, build_model, cut, gradients, make_batch
from tests.serving.clients import TWELVE, Client, generate_twelve

LEAKING = {"opt", "lfm2", "qwen3_next", "bloom", "falcon_h1"}
"""Those whose examples share a row only as neighbours that see each other."""
ROWS = [{"prompt": f"Number {n}?", "completion": "It is red."} for n in range(8)]


@pytest.fixture(params=ARCHITECTURES)
def folder(request, tmp_path: Path, base_dir: Path) -> Path:
    make_architecture(tmp_path / request.param, request.param)
    for file in base_dir.glob("tokenizer*"):
        shutil.copy(file, tmp_path / request.param)
    return tmp_path / request.param


def test_an_example_learns_the_same_beside_any_other(folder: Path):
    module = build_model(folder).eval()
    lines: list[str] = []
    if module.use_decoder() is not None:
        try_sharing_rows(module, lines.append)
    assert (folder.name in LEAKING) == bool(lines) == (not module.shares_rows)
    batch = make_batch(7, 12, 30)
    alone = gradients(module, cut(batch))
    assert_same(gradients(module, [batch]), alone)
    if lines:
        module.shares_rows = True
        assert gradients(module, [batch])[0] != pytest.approx(alone[0], rel=1e-4)


def test_what_was_trained_is_served_as_transformers_and_peft_do(folder: Path, train):
    output = train(
        rows=ROWS, base_model=str(folder), base_model_dir=str(folder), max_steps=2,
        learning_rate=0.02, pack_sequences=True, chunk_size=64, run_validation=False,
    )  # fmt: skip
    prompt = list(range(3, 40, 2))
    base = AutoModelForCausalLM.from_pretrained(folder)
    engine = Engine(folder, dtype="float32", max_slots=2)
    try:
        adapter = engine.load_adapter(read_adapter(output, engine.linear_shapes), key="trained")
        served = [Client(engine, prompt, TWELVE, adapter=a).answer() for a in (None, adapter)]
    finally:
        engine.close()
    unused = Tokenizer(folder).unused_rows(400)
    assert unused  # which the random model would draw
    assert served[0] == generate_twelve(base, prompt, unused)
    assert served[1] == generate_twelve(PeftModel.from_pretrained(base, output), prompt, unused)
    assert served[0] != served[1]


def test_a_model_that_is_not_causal_is_refused(tmp_path: Path):
    config = AutoConfig.for_model("bert", vocab_size=400, hidden_size=32, num_hidden_layers=1,
                                  num_attention_heads=2, intermediate_size=32)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match="bert lets a token see what comes after it"):
        find_neighbour_effect(model)


def test_an_architecture_that_is_unknown_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-thing"}')
    with pytest.raises(UserError, match=r"'no-such-thing', is none of the .* causal language"):
        check_architecture(tmp_path)
