"""The inputs are what the contract says, and Cog reads all of them."""

from pathlib import Path

import pytest

from src.cli.schema import build_schema

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
    "messages": ("string", None, {}),
    "json_schema": ("string", None, {}),
    "logprobs": ("integer", None, {"minimum": 0, "maximum": 20}),
    "num_outputs": ("integer", 1, {"minimum": 1, "maximum": 16}),
}


@pytest.mark.parametrize(("component", "table"), [("TrainingInput", TRAIN), ("Input", PREDICT)])
def test_inputs_are_those_of_the_contract(component: str, table: dict):
    schemas = build_schema(ROOT / "train.py", ROOT / "predict.py")["components"]["schemas"]
    properties = schemas[component]["properties"]
    assert list(properties) == list(table)
    for order, (name, (kind, default, limits)) in enumerate(table.items()):
        found = properties[name]
        assert found["x-order"] == order
        assert found.get("type") == kind, name
        assert found["description"], name
        assert (name in schemas[component].get("required", [])) == (default is REQUIRED), name
        if default is not REQUIRED:
            assert found["default"] == default, name
        assert found.get("nullable", False) == (default is None), name
        assert {k: v for k, v in found.items() if k in ("minimum", "maximum")} == limits, name
    assert schemas["peft_method"]["enum"] == ["lora", "qlora"]
    assert schemas["learning_rate_schedule"]["enum"] == ["cosine", "linear", "constant"]


def test_both_predictors_take_the_same_inputs():
    one, many = (
        build_schema(ROOT / "train.py", ROOT / "predict.py", predictor=name)
        for name in ("Predictor", "ConcurrentPredictor")
    )
    assert one["components"] == many["components"]
    post = many["paths"]["/predictions"]["post"]
    assert "x-cog-streaming" not in post
    assert post == {k: v for k, v in one["paths"]["/predictions"]["post"].items() if k in post}
    with pytest.raises(ValueError, match=r"there is no Other\.predict"):
        build_schema(ROOT / "train.py", ROOT / "predict.py", predictor="Other")


def test_the_document_has_what_coglet_looks_for():
    schema = build_schema(ROOT / "train.py", ROOT / "predict.py")
    assert schema["paths"]["/predictions"]["post"]["x-cog-streaming"] is True
    assert "x-cog-streaming" not in schema["paths"]["/trainings"]["post"]
    output = schema["components"]["schemas"]["TrainingOutput"]
    assert output["properties"]["weights"]["format"] == "uri"
    assert schema["components"]["schemas"]["Output"]["x-cog-array-display"] == "concatenate"


@pytest.mark.parametrize(
    "written",
    [
        "a: int = Input(default=2 * 2)",
        "a: int = Input(default=RANK)",
        "a: int = Input(default=make())",
        "a: int = make()",
        'a: int = Input(default=1, description="one " "two")',
        'a: int = Input(default=1, description=("one " "two"))',
        'a: int = Input(default=1, description=f"one")',
        'a: str = Input(default="a\\nb")',
        "a: int = Input(default=1, ge=LIMIT)",
        "a = Input(default=1)",
        "a: list[int] = Input(default=1)",
    ],
)
def test_what_cog_would_drop_is_refused(tmp_path: Path, written: str):
    train = tmp_path / "train.py"
    train.write_text(f"def train(b: int, {written}) -> Path:\n    ...\n")
    with pytest.raises(ValueError, match=r"a: "):
        build_schema(train, ROOT / "predict.py")
