"""The browser of the tests leaves no process behind."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.service.page.browser import CHROMIUM, DRIVER
from tests.service.running import ROOT

PROGRAM = """
import time
from tests.service.page.browser import running_browser
with running_browser():
    print("open", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(DRIVER is None or CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_ends_with_a_test_that_is_killed():
    command = [sys.executable, "-c", PROGRAM]
    test = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert test.stdout is not None
        assert test.stdout.readline() == "open\n"
        started = psutil.Process(test.pid).children(recursive=True)
        assert any("chrom" in process.name() for process in started)
    finally:
        os.kill(test.pid, signal.SIGKILL)
        test.wait()
    deadline = time.monotonic() + 30
    while any(process.is_running() for process in started):
        assert time.monotonic() < deadline, list(started)
        time.sleep(0.05)
