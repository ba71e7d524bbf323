"""The GPU check runs on a CPU too, at tiny shapes, and says what is wrong by its exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.results import Result, Results
from benchmarks.gpu.run import ROOT, report

STAGES = ("machine", "attention", "train_right", "serve_right")


def test_its_stages_run_on_a_cpu(tmp_path: Path):
    command = (sys.executable, "-m", "benchmarks.gpu.run", "--tiny", "--only", ",".join(STAGES))
    ended = subprocess.run(
        (*command, "--out", str(tmp_path)), cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + (tmp_path / "log.txt").read_text()
    results = Results(tmp_path).read()
    right = {result.stage for result in results if result.is_right}
    ended_stages = {result.stage for result in results if result.check == "the stage"}
    assert (right, ended_stages) == (set(STAGES) - {"machine"}, set(STAGES))
    assert "| train_right |" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(("is_right", "code"), [(True, 0), (None, 0), (False, 1)])
def test_only_a_wrong_result_is_a_failure(tmp_path: Path, is_right: bool | None, code: int):
    results = Results(tmp_path)
    results.add(Result("attention", "error", 0.5, "relative", is_right))
    assert report(results, tmp_path) == code
