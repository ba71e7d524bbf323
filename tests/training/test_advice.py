"""The plan tells of passes that leave a GPU idle, where a setting would change it."""

import json
from pathlib import Path

import pytest
import torch

from src.data.prepare import build_step_plan
from src.data.token_file import TokenDataset, write_tokens
from src.data.tokenization import TokenizedExample
from src.training.plan.decide import make_plan
from src.training.plan.resources import Resources

LLAMA_7B_CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


@pytest.fixture
def warning(make_settings, tmp_path: Path):
    """Return a function that returns what the plan of a run on GPUs warns of."""

    def find(
        *, length: int, examples: int = 64, gigabytes: float = 80, num_gpus: int = 1,
        model_type: str = "llama", zero_stage: int | None = None, **values,
    ) -> str | None:  # fmt: skip
        config = {**LLAMA_7B_CONFIG, "model_type": model_type}
        (tmp_path / "config.json").write_text(json.dumps(config))
        example = TokenizedExample([5] * length, [5] * length, [True] * length)
        write_tokens(enumerate([example] * examples, start=1), tmp_path / "data")
        data = TokenDataset(tmp_path / "data", name="data.jsonl")
        settings = make_settings(base_model_dir=str(tmp_path), **values)
        steps = build_step_plan(data, settings, max_seq_len=4096, num_devices=num_gpus)
        free = gigabytes * 1e9
        device = torch.device("cuda" if gigabytes else "cpu")
        resources = Resources(
            device=device, available=free, libraries=0.0, alone=free, dtype=torch.bfloat16
        )
        plan = make_plan(settings, data, steps, resources, zero_stage=zero_stage)
        return next((line for line in plan.lines() if line.startswith("warning")), None)

    return find


def test_the_defaults_with_short_examples_are_told(warning):
    """Captured, these 600 tokens take half as long; the weights are read for them all the same."""
    assert warning(length=150) == (
        "warning: passes of about 600 tokens do not fill a GPU, as the weights are read in each: a "
        "larger train_batch_size, or pack_sequences=true, would train faster, up to about 1,024 "
        "tokens in a pass"
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"length": 300}, None),
        ({"length": 150, "examples": 4}, None),  # there are no more of them
        ({"length": 150, "train_batch_size": 8, "micro_batch_size": 2}, "larger micro_batch_size "),
        ({"length": 150, "train_batch_size": 8, "num_gpus": 4}, "of about 300 tokens"),
        ({"length": 150, "pack_sequences": True, "chunk_size": 2048}, None),
        ({"length": 150, "pack_sequences": True, "chunk_size": 150}, "larger chunk_size or train"),
    ],
)
def test_the_setting_that_helps_is_named(warning, values: dict, expected: str | None):
    found = warning(**values)
    assert found is None if expected is None else found is not None and expected in found


@pytest.mark.parametrize(
    "values",
    [
        {"zero_stage": 3, "num_gpus": 2, "train_batch_size": 8},
        {"model_type": "gpt_neox"},
        {"model_type": "gemma2"},
    ],
)
def test_passes_that_are_not_captured_have_to_be_longer(warning, values: dict):
    assert "up to about 4,096 tokens" in warning(length=300, **values)
    assert warning(length=1024, **values) is None


def test_4_bit_weights_that_are_unpacked_want_the_longest_passes(warning):
    values = {"peft_method": "qlora", "gigabytes": 12, "micro_batch_size": 1}
    assert "unpacked from 4-bit in each: a larger micro_batch_size" in warning(length=512, **values)
    kept_unpacked = {**values, "gigabytes": 80}
    assert "the weights are read in each" in warning(length=512, **kept_unpacked)
    assert warning(length=2048, **kept_unpacked) is None


def test_nothing_is_told_where_memory_has_no_room_for_longer_passes(warning):
    assert warning(length=2048, peft_method="qlora", gigabytes=12) is None
    assert warning(length=2048, peft_method="qlora", gigabytes=12, micro_batch_size=1) is not None
