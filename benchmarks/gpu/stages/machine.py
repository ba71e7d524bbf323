"""What the machine is, and what it reaches at most."""

import os
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu.stage import Stage
from benchmarks.gpu.timing import median_seconds, seconds_in_graph

PACKAGES = ("torch", "triton", "transformers", "peft", "deepspeed", "bitsandbytes", "liger-kernel")


def run(stage: Stage) -> None:
    stage.section(describe, stage)
    stage.section(measure_ceilings, stage)


def describe(stage: Stage) -> None:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    stage.record("versions", ", ".join(found), note=f"Python {sys.version.split()[0]}")
    stage.record("processors", os.cpu_count() or 0)
    if stage.device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        stage.record("GPU", torch.cuda.get_device_name(), note=f"CUDA {torch.version.cuda}")
        stage.record("free memory", free / 1e9, "GB", note=f"of {total / 1e9:.1f}")


def measure_ceilings(stage: Stage) -> None:
    ceilings = {"copy bandwidth": copy_bandwidth(stage)}
    shapes = [(8192, 8192, 8192), (8192, 4096, 11008), (2048, 4096, 11008), (600, 4096, 11008)]
    for rows, inner, out in [(64, 64, 64)] if stage.is_tiny else shapes:
        flops = matmul_flops(stage, rows, inner, out)
        ceilings.setdefault("matmul", flops)
        stage.record(f"product of {rows} x {inner} x {out}", flops / 1e12, "TFLOP/s")
    stage.record("copy bandwidth", ceilings["copy bandwidth"] / 1e12, "TB/s")
    stage.keep_ceilings(ceilings)
    stage.release_memory()
    layers = [(22016, 4096), (4096, 11008), (12288, 4096), (4096, 4096)]
    for out, inner in [(64, 64)] if stage.is_tiny else layers:
        measure_rows(stage, out, inner)


def copy_bandwidth(stage: Stage) -> float:
    """Return bytes a second, read and written."""
    source = torch.ones(2**20 if stage.is_tiny else 2**31, dtype=torch.bfloat16).to(stage.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), repeat=5)


def matmul_flops(stage: Stage, rows: int, inner: int, out: int) -> float:
    x = torch.randn(rows, inner, device=stage.device, dtype=stage.dtype)
    weight = torch.randn(out, inner, device=stage.device, dtype=stage.dtype)
    return 2 * rows * inner * out / median_seconds(lambda: x @ weight.T, repeat=12)


def measure_rows(stage: Stage, out: int, inner: int) -> None:
    """Record products of a few rows, by more weights than a cache holds."""
    count = 3 if stage.is_tiny else max(3, int(4e8 / (2 * out * inner)))
    weights = [
        torch.randn(out, inner, device=stage.device, dtype=stage.dtype) for _ in range(count)
    ]
    for rows in (1, 8):
        x = torch.randn(rows, inner, device=stage.device, dtype=stage.dtype)
        seconds = seconds_in_graph(lambda x=x: [x @ w.T for w in weights], calls=2) / count
        stage.record(
            f"{rows} rows x ({out}, {inner})",
            1e6 * seconds,
            "us",
            share=stage.share(weights[0].nbytes / seconds, "copy bandwidth"),
        )
