"""Runs with `BASE_WEIGHTS=fp8`: what they say, and what they refuse."""

import json
import os
from pathlib import Path

import pytest

from src.environment import TrainEnvironment, read_train_environment
from src.errors import UserError
from src.training.plan.dry_run import plan_training
from tests.conftest import ROWS
from tests.model.architectures import make_architecture
from tests.training.ranks import run_ranks

FLOAT8 = TrainEnvironment(in_float8=True)


def test_a_run_says_that_its_weights_were_in_float8(new_run_dir, make_settings):
    settings, folder = make_settings(environment=FLOAT8, validation_prompt="Hi"), new_run_dir()
    output = run_ranks(settings, folder)
    log = (folder / "log").read_text()
    assert "frozen weights in float8 (emulated: slow, to try what it learns)" in log
    assert "float8: 12 of the 14 frozen products of all layers" in log
    assert "| float8 weights | loss" in log
    assert "validation sample at step" in log
    manifest = json.loads((output / "training.json").read_text())
    assert manifest["settings"]["base_weights"] == "float8"
    assert "<tr><td>base_weights</td><td>float8</td></tr>" in (output / "report.html").read_text()


def test_a_run_without_it_says_what_its_weights_were(new_run_dir, make_settings):
    folder = new_run_dir()
    output = run_ranks(make_settings(), folder)
    assert "float8" not in (folder / "log").read_text()
    settings = json.loads((output / "training.json").read_text())["settings"]
    assert settings["base_weights"] == settings["dtype"]


def test_weights_in_4bit_stay_as_they_are(new_run_dir, make_settings):
    settings = make_settings(environment=FLOAT8, peft_method="qlora", run_validation=False)
    folder = new_run_dir()
    output = run_ranks(settings, folder)
    assert "BASE_WEIGHTS=fp8 without effect on 4-bit weights" in (folder / "log").read_text()
    manifest = json.loads((output / "training.json").read_text())
    assert manifest["settings"]["base_weights"] == "4-bit"


def test_weights_that_ranks_share_out_are_refused(base_dir: Path, write_rows):
    os.environ |= {"BASE_MODEL": str(base_dir), "BASE_WEIGHTS": "fp8", "ZERO_STAGE": "2"}
    lines = plan_training({"train_data": write_rows(ROWS)})
    assert any("frozen weights in float8" in line for line in lines)
    os.environ["ZERO_STAGE"] = "3"
    with pytest.raises(UserError, match=r"^BASE_WEIGHTS: expected none under ZeRO-3, .* 'fp8'$"):
        plan_training({"train_data": write_rows(ROWS)})


def test_weights_that_run_in_transformers_are_refused(tmp_path: Path, write_rows, base_dir: Path):
    """Before the base model is loaded, and not where they are in 4-bit."""
    make_architecture(tmp_path, "cohere2")
    for file in base_dir.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    os.environ |= {"BASE_MODEL": str(tmp_path), "BASE_WEIGHTS": "fp8"}
    with pytest.raises(UserError, match=r"^BASE_WEIGHTS: expected none for .* layers, .* 'fp8'$"):
        plan_training({"train_data": write_rows(ROWS)})
    lines = plan_training({"train_data": write_rows(ROWS), "peft_method": "qlora"})
    assert any("BASE_WEIGHTS=fp8 without effect on 4-bit weights" in line for line in lines)


def test_the_switch_is_read():
    assert read_train_environment({"BASE_WEIGHTS": "fp8"}).in_float8
    assert not read_train_environment({}).in_float8
    with pytest.raises(UserError, match=r"^BASE_WEIGHTS: expected fp8, found 'int8'$"):
        read_train_environment({"BASE_WEIGHTS": "int8"})
