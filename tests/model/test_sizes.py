"""The sizes that a plan reads from a configuration are those of the model."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from src.model.adapter import adapter_parameters, attach_adapter, resolve_target_modules
from src.model.base_model import linear_shapes
from src.model.core.families.table import FAMILIES
from src.model.sizes import read_shape
from tests.model.architectures import make_architecture
from tests.model.families import make_family


@pytest.mark.parametrize("model_type", FAMILIES)
def test_sizes_are_those_of_the_model(tmp_path: Path, model_type: str):
    make_family(tmp_path, model_type)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    assert shape is not None
    linears = {
        name.rpartition(".")[2]: size
        for name, size in linear_shapes(model).items()
        if ".layers." in name
    }
    assert shape.layer_linears == linears
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert shape.linear_parameters + shape.other_parameters == num_parameters


def test_a_model_that_sees_has_the_sizes_of_its_text_model(tmp_path: Path):
    make_family(tmp_path / "text", "gemma3_text")
    config = AutoConfig.from_pretrained(tmp_path / "text")
    make_architecture(
        tmp_path / "whole", "gemma3", text_config=config.to_dict(),
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                       "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )  # fmt: skip
    text, whole = read_shape(tmp_path / "text"), read_shape(tmp_path / "whole")
    assert text is not None
    assert whole is not None
    assert whole.num_more > text.num_more  # what sees counts as well
    assert replace(whole, num_more=text.num_more) == text

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    targets = resolve_target_modules(model, "all-linear")
    attach_adapter(model, target_modules=targets, rank=2, alpha=4, dropout=0.0, seed=0)
    adapted = dict(adapter_parameters(model))
    assert all("language_model.layers" in name for name in adapted)
    assert sum(p.numel() for p in adapted.values()) == text.adapter_parameters("all-linear", 2)


def test_a_model_that_runs_in_transformers_has_none(tmp_path: Path):
    make_architecture(tmp_path, "opt")
    assert read_shape(tmp_path) is None
