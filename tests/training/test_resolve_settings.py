"""What is wrong with a training's inputs or environment is said before anything is fetched."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from src.environment import TrainEnvironment, read_train_environment
from src.errors import UserError
from src.settings import TrainSettings
from src.training.run import run_training
from tests.conftest import ROWS
from tests.training.runs import CURVE, metrics

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("inputs", "environment", "sentence"),
    [
        ({"learning_rate": 0}, {}, "learning_rate: expected a number above 0"),
        ({"lora_rank": 10**6}, {}, "lora_rank: expected a whole number"),
        ({"resume_from": "auto"}, {}, "resume_from: the server has no CHECKPOINT_DIR"),
        ({"resume_from": "gone"}, {"CHECKPOINT_DIR": "kept"}, "checkpoint gone: expected a folder"),
        ({"resume_from": "../x"}, {"CHECKPOINT_DIR": "kept"}, "a folder below CHECKPOINT_DIR"),
        ({}, {"CHECKPOINT_DIR": "/proc/kept"}, "CHECKPOINT_DIR: expected a folder that can be"),
        ({}, {"NUM_NODES": "2"}, "RENDEZVOUS: expected host:port of one of the NUM_NODES mach"),
        ({}, {"NUM_NODES": "2", "RENDEZVOUS": "a:b"}, "RENDEZVOUS: expected .* found a:b"),
        ({}, {"NUM_NODES": "no"}, "NUM_NODES: expected a number of at least 1, found 'no'"),
    ],
)
def test_all_that_can_be_is_checked_before_a_base_model_is_fetched(
    inputs, environment: dict[str, str], sentence: str, write_rows, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    os.environ |= {"BASE_MODEL": "some/model", "BASE_MODEL_URL": "http://127.0.0.1:9/none"}
    os.environ |= environment
    data = write_rows(ROWS)
    with pytest.raises(UserError, match=sentence):
        run_training({"train_data": data, **inputs}, record_metric=print)


def test_an_environment_comes_back_from_json():
    asked = {"DETERMINISTIC": "1", "ZERO_STAGE": "3", "DEVICE_MEMORY_GB": "2.5"}
    asked |= {"NUM_NODES": "2", "RENDEZVOUS": "[::1]:29400", "PORT": "5001", "NUM_PROCESSES": "4"}
    environment = read_train_environment(asked)
    assert environment.deterministic
    assert environment.device_memory == 2.5e9
    assert TrainEnvironment(**json.loads(json.dumps(asdict(environment)))) == environment
    assert read_train_environment({}) == TrainEnvironment()


def test_a_run_is_replayed_from_its_settings(train, tmp_path: Path):
    """In one process, without a launcher, whatever the environment says by now."""
    os.environ["ZERO_STAGE"] = "2"
    options = {**CURVE, "max_steps": 3, "lora_dropout": 0.1}
    output = train(**options)
    folder = tmp_path / "replay"
    folder.mkdir()
    settings = folder / "settings.json"
    settings.write_text((output.parent / "settings.json").read_text())
    assert TrainSettings.load(settings).environment.zero_stage == 2
    environment = {**os.environ, "ZERO_STAGE": "3", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "src.training.worker", str(settings)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ZeRO-2" in done.stdout
    assert metrics(folder / "output") == metrics(output)
