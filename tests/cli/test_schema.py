"""The inputs are what the contract says, and Cog reads all of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from src.cli.schema import CONCURRENT_PREDICTOR, PREDICTOR, build_schema

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = object()

TRAIN = {
    "train_data": ("string", REQUIRED, {}),
    "num_train_epochs": ("integer", 3, {"minimum": 1}),
    "train_batch_size": ("integer", 4, {"minimum": 1}),
    "micro_batch_size": ("integer", 4, {"minimum": 1}),
    "num_validation_samples": ("integer", 50, {"minimum": 1}),
    "validation_data": ("string", None, {}),
    "validation_batch_size": ("integer", 1, {"minimum": 1}),
    "run_validation": ("boolean", True, {}),
    "validation_prompt": ("string", None, {}),
    "learning_rate": ("number", 1e-4, {"minimum": 0}),
    "pack_sequences": ("boolean", False, {}),
    "wrap_packed_sequences": ("boolean", False, {}),
    "chunk_size": ("integer", 2048, {"minimum": 1}),
    "peft_method": (None, "lora", {}),
    "seed": ("integer", 42, {}),
    "lora_rank": ("integer", 8, {"minimum": 1}),
    "lora_alpha": ("integer", 16, {"minimum": 1}),
    "lora_dropout": ("number", 0.05, {"minimum": 0, "maximum": 1}),
    "lora_target_modules": ("string", "all-linear", {}),
    "prompt_template": ("string", None, {}),
    "system_prompt": ("string", None, {}),
    "prompt_loss_weight": ("number", 0.0, {"minimum": 0, "maximum": 1}),
    "learning_rate_schedule": (None, "cosine", {}),
    "warmup_ratio": ("number", 0.03, {"minimum": 0, "maximum": 1}),
    "max_steps": ("integer", None, {"minimum": 1}),
    "checkpoint_seconds": ("integer", 300, {"minimum": 1}),
    "resume_from": ("string", None, {}),
    "save_on_cancel": ("boolean", False, {}),
}
PREDICT = {
    "prompt": ("string", REQUIRED, {}),
    "system_prompt": ("string", None, {}),
    "prompt_template": ("string", None, {}),
    "max_new_tokens": ("integer", 128, {"minimum": 1}),
    "min_new_tokens": ("integer", -1, {"minimum": -1}),
    "temperature": ("number", 0.7, {"minimum": 0, "maximum": 5}),
    "top_p": ("number", 0.95, {"minimum": 0, "maximum": 1}),
    "top_k": ("integer", -1, {"minimum": -1}),
    "repetition_penalty": ("number", 1.15, {"minimum": 0}),
    "stop_sequences": ("string", None, {}),
    "seed": ("integer", None, {}),
    "debug": ("boolean", False, {}),
    "replicate_weights": ("string", None, {}),
    "tools": ("string", None, {}),
    "messages": ("string", None, {}),
    "json_schema": ("string", None, {}),
    "logprobs": ("integer", None, {"minimum": 0, "maximum": 20}),
    "num_outputs": ("integer", 1, {"minimum": 1, "maximum": 16}),
}


@pytest.mark.parametrize(("component", "table"), [("TrainingInput", TRAIN), ("Input", PREDICT)])
def test_inputs_are_those_of_the_contract(component: str, table: dict):
    schemas = build_schema()["components"]["schemas"]
    properties = schemas[component]["properties"]
    assert list(properties) == list(table)
    for order, (name, (kind, default, limits)) in enumerate(table.items()):
        found = properties[name]
        assert found["x-order"] == order
        assert found.get("type") == kind, name
        assert found["description"], name
        assert (name in schemas[component]["required"]) == (default is REQUIRED), name
        if default is not REQUIRED:
            assert found["default"] == default, name
        assert found.get("nullable", False) == (default is None), name
        assert {k: v for k, v in found.items() if k in ("minimum", "maximum")} == limits, name
    assert schemas["peft_method"]["enum"] == ["lora", "qlora"]
    assert schemas["learning_rate_schedule"]["enum"] == ["cosine", "linear", "constant"]


def test_both_predictors_take_the_same_inputs_and_one_streams():
    one, many = build_schema(PREDICTOR), build_schema(CONCURRENT_PREDICTOR)
    assert one["components"] == many["components"]
    assert one["paths"]["/predictions"]["post"] == {"x-cog-streaming": True}
    assert many["paths"]["/predictions"]["post"] == {}
    assert one["paths"]["/trainings"]["post"] == {}
    with pytest.raises(ImportError, match="Other"):
        build_schema("predict.py:Other")


def test_the_document_has_what_coglet_looks_for():
    schemas = build_schema()["components"]["schemas"]
    assert schemas["TrainingOutput"]["properties"]["weights"]["format"] == "uri"
    assert schemas["Output"]["x-cog-array-display"] == "concatenate"
    for component in ("Input", "TrainingInput"):
        for name, found in schemas[component]["properties"].items():
            reference = {"allOf": [{"$ref": f"#/components/schemas/{name}"}]}
            assert ("type" in found) != (reference.items() <= found.items()), name


def test_limits_are_quoted_as_they_are_written():
    limits = build_schema()["components"]["schemas"]["Input"]["properties"]["top_p"]
    assert json.dumps([limits["minimum"], limits["maximum"]]) == "[0, 1]"


def test_the_schema_is_made_without_torch():
    check = "import sys, src.cli.schema as s; s.build_schema(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)
