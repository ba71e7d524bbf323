"""`cog train` shows the log of a training, once."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import threading
from src.training.supervise.cog_train_log import shown_by_cog_train

@shown_by_cog_train()
def train():
    print("first", flush=True)
    thread = threading.Thread(target=print, args=("second \\N{EM DASH}",))
    thread.start()
    thread.join()

train()
train()
print("last")
"""
LINES = "first\nsecond \N{EM DASH}\n" * 2


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"COG_LOG_LEVEL": "warning"}, LINES),
        ({"COG_LOG_LEVEL": "error", "LANG": "C"}, LINES),
        ({"COG_LOG_LEVEL": "info"}, ""),
        ({}, ""),
        ({"COG_LOG_LEVEL": "warning", "RUST_LOG": "info"}, ""),  # all is shown then
    ],
)
def test_lines_that_cog_hides_are_shown_once_on_stderr(environment: dict[str, str], shown: str):
    given = {n: v for n, v in os.environ.items() if n not in ("COG_LOG_LEVEL", "RUST_LOG")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**given, **environment}, capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert done.stdout == LINES + "last\n"
    assert done.stderr == shown


def test_a_stderr_that_nobody_reads_stops_no_training():
    program = f"import os\nread, write = os.pipe()\nos.dup2(write, 2)\nos.close(read)\n{PROGRAM}"
    environment = {**os.environ, "COG_LOG_LEVEL": "warning"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, encoding="utf-8"
    )
    assert done.stdout == LINES + "last\n"
