"""The demo trains and answers, from one command."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_tiny_demo_answers_what_it_learned(tmp_path: Path):
    os.environ["BASE_MODEL_CACHE"] = str(tmp_path)
    command = [sys.executable, "-m", "src.cli.demo", "--tiny"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    answers = {
        name: re.findall(rf"^{name}: +(.*)$", said, flags=re.MULTILINE)
        for name in ("before", "after", "expected")
    }
    assert len(answers["after"]) == 3
    assert answers["after"] == answers["expected"] != answers["before"]
    assert "<svg" in (tmp_path / "demo" / "report.html").read_text()
