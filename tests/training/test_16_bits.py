"""In 16 bits a run learns what it learns in float32, within the rounding."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from src.errors import UserError
from src.model.precision import dtype_name
from src.serving.predictor import TextPredictor
from tests.conftest import ROWS
from tests.serving.request import REQUEST
from tests.training.ranks import run_ranks
from tests.training.runs import CURVE, losses

ROUNDING = {"bfloat16": 0.005, "float16": 0.0005}
"""Most difference of a step's loss from that in float32; relative."""


def let_deepspeed_shard_float16() -> None:
    """Have DeepSpeed run on this CPU what it runs on GPUs."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


def begin_with_too_large_a_scale() -> None:
    """Have the first gradients overflow, of a sum and of a mean."""
    from src.training import deepspeed_engine

    deepspeed_engine.SUM_SCALE_POWER = deepspeed_engine.MEAN_SCALE_POWER = 24
    let_deepspeed_shard_float16()


@pytest.fixture
def train_in(new_run_dir, make_settings):
    """Return a function that trains in a precision."""

    def run(
        dtype: str,
        *,
        zero_stage: int = 2,
        num_processes: int = 1,
        prepare: Callable[[], None] | None = let_deepspeed_shard_float16,
        **values: Any,
    ) -> Path:
        os.environ |= {"DTYPE": dtype, "ZERO_STAGE": str(zero_stage)}
        settings = make_settings(**{**CURVE, **values})
        return run_ranks(settings, new_run_dir(), num_processes=num_processes, prepare=prepare)

    return run


@pytest.mark.parametrize("zero_stage", [2, 3])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_the_curve_is_that_of_float32(train_in, dtype: str, zero_stage: int, capfd):
    exact = losses(train_in("float32"))
    capfd.readouterr()
    output = train_in(dtype, num_processes=2, zero_stage=zero_stage)
    found = losses(output)
    assert found == pytest.approx(exact, rel=ROUNDING[dtype])
    assert found != exact
    assert exact[-1] < 0.9 * exact[0]
    logged = capfd.readouterr().out
    assert f", {dtype}, ZeRO-{zero_stage}" in logged
    assert "overflows" not in logged
    assert json.loads((output / "training.json").read_text())["settings"]["dtype"] == dtype
    matrices = load_file(output / "adapter_model.safetensors").values()
    assert {dtype_name(matrix.dtype) for matrix in matrices} == {dtype}


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_gradient_beyond_float16_is_taken_again_with_a_smaller_scale(
    train_in, zero_stage: int, capfd
):
    """No step is lost and no number of the curve is another."""
    options = {"zero_stage": zero_stage, "num_processes": 2}
    plain = losses(train_in("float16", **options))
    capfd.readouterr()
    found = losses(train_in("float16", prepare=begin_with_too_large_a_scale, **options))
    assert found == pytest.approx(plain, rel=1e-4)
    told = [line for line in capfd.readouterr().out.splitlines() if "overflows float16" in line]
    assert told[0] == (
        "step 1: the gradient overflows float16 with the loss scaled by 16,777,216; "
        "the step is taken again with 8,388,608"
    )


def test_what_deepspeed_does_not_shard_is_one_sentence(launch):
    # A few CPUs multiply float16, which DeepSpeed asks oneDNN about.
    os.environ |= {
        "DTYPE": "float16", "ZERO_STAGE": "3", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
    }  # fmt: skip
    with pytest.raises(UserError, match="DTYPE: expected float32 or bfloat16 with ZERO_STAGE=3"):
        launch(num_processes=1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_was_learned_in_16_bits_is_recited(train_in, base_dir: Path, dtype: str):
    output = train_in(
        dtype, num_processes=2, num_train_epochs=40, learning_rate=1e-2, num_validation_samples=1,
        lora_rank=16,
    )  # fmt: skip
    os.environ["BASE_MODEL"] = str(base_dir)
    for served in (dtype, "float32"):
        os.environ["DTYPE"] = served
        predictor = TextPredictor(str(output))
        for row in ROWS[:8]:
            request = {**REQUEST, "prompt": row["prompt"], "max_new_tokens": 32}
            answer = "".join(predictor.stream(request, record_metric=lambda *_, **__: None))
            assert answer == row["completion"]
        predictor.close()


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_resumed_run_finds_the_loss_scale_that_fits(
    train_in, tmp_path: Path, zero_stage: int, capfd
):
    kept = {"checkpoint_folder": str(tmp_path / "kept"), "checkpoint_seconds": 0}
    options = {"zero_stage": zero_stage, "prepare": begin_with_too_large_a_scale, **kept}
    train_in("float16", **options, max_steps=2)
    assert "overflows float16" in capfd.readouterr().out
    train_in("float16", **options, resume_from=str(tmp_path / "kept" / "step-00000002"))
    logged = capfd.readouterr().out
    assert "resumed after step 2" in logged
    assert "overflows float16" not in logged


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_resumed_run_in_16_bits_is_the_whole_run(train_in, tmp_path: Path, dtype: str):
    options = {"checkpoint_folder": str(tmp_path / "kept"), "checkpoint_seconds": 0}
    whole = train_in(dtype, **options)
    shutil.copytree(tmp_path / "kept", tmp_path / "other")
    checkpoint = sorted((tmp_path / "kept").glob("step-*"))[0]
    resumed = train_in(dtype, **options, resume_from=str(checkpoint))
    one, other = (load_file(path / "adapter_model.safetensors") for path in (whole, resumed))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)
