"""The sizes that a plan reads from a configuration are those of the model."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

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
        if ".layers.1." in name
    }
    assert shape.layer_linears == linears
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert shape.linear_parameters + shape.other_parameters == num_parameters


def test_a_model_that_runs_in_transformers_has_none(tmp_path: Path):
    make_architecture(tmp_path, "mixtral")
    assert read_shape(tmp_path) is None
