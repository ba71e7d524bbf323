"""What the training benchmark asks of the device: its name, its speed, the memory in use."""

import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.picture import machine_name
from benchmarks.shapes import MATMUL_FLOPS


def device_name(*, on_gpu: bool) -> str:
    """Return the GPU with its memory, or the processor."""
    return _query_gpu("name,memory.total") if on_gpu else machine_name()


def matmul_flops(*, on_gpu: bool) -> float:
    """Return the known rate of matrix products of this GPU, or the measured one of one core."""
    if on_gpu:
        name = _query_gpu("name")
        return next((rate for gpu, rate in MATMUL_FLOPS.items() if gpu in name), float("nan"))
    code = (
        "import time, torch; torch.set_num_threads(1); a = torch.randn(1536, 1536); best = 1e9\n"
        "for _ in range(8):\n"
        "    start = time.process_time(); a @ a; best = min(best, time.process_time() - start)\n"
        "print(2 * 1536**3 / best)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    measured = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return float(measured.stdout)


def peak_memory(pid: int, *, on_gpu: bool) -> int:
    """Return the most bytes that a process has held so far; on a GPU, what is in use now."""
    if on_gpu:
        return int(_query_gpu("memory.used").split()[0]) * 2**20
    status = Path(f"/proc/{pid}/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(peak[1]) * 1024 if peak else 0


def _query_gpu(fields: str) -> str:
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
