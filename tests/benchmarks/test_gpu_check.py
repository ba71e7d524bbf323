"""The GPU check runs on a CPU too, at tiny shapes, and says what is wrong by its exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.results import Result, Results
from benchmarks.gpu.run import ROOT, report

STAGES = (
    {"machine": False, "attention": True, "train_right": True, "serve_right": True},
    {"train_speed-float8": True, "train_peer": False, "serve_speed": False, "serve_peer": False},
    {"launches": False, "gpus": True},
)
"""Whether there is something that can be right; those of e2e are tested one by one elsewhere."""


@pytest.mark.parametrize("stages", STAGES, ids=",".join)
def test_its_stages_run_on_a_cpu(tmp_path: Path, stages: dict[str, bool]):
    command = (sys.executable, "-m", "benchmarks.gpu.run", "--tiny", "--only", ",".join(stages))
    ended = subprocess.run(
        (*command, "--out", str(tmp_path)), cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + (tmp_path / "log.txt").read_text()
    results = Results(tmp_path).read()
    right = {result.stage for result in results if result.is_right}
    ended_stages = {result.stage for result in results if result.check == "the stage"}
    expected = {stage for stage, can_be_right in stages.items() if can_be_right}
    assert (right, ended_stages) == (expected, set(stages))
    assert not [result for result in results if result.value in ("failed", "left out")]
    assert f"| {next(iter(stages))} |" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(("is_right", "code"), [(True, 0), (None, 0), (False, 1)])
def test_only_a_wrong_result_is_a_failure(tmp_path: Path, is_right: bool | None, code: int):
    results = Results(tmp_path)
    results.add(Result("attention", "error", 0.5, "relative", is_right))
    assert report(results, tmp_path) == code
