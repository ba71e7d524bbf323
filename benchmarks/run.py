"""Measure: `python -m benchmarks.run NAME [options]`."""

import sys

from benchmarks.service import benchmark as service_benchmark
from benchmarks.serving import benchmark as serve_benchmark
from benchmarks.serving import real_model, start
from benchmarks.serving.trace import benchmark as trace_benchmark
from benchmarks.training import benchmark as train_benchmark
from benchmarks.training import float8


def main() -> None:
    """Run one of the benchmarks."""
    benchmarks = {
        "train": train_benchmark.main,
        "serve": serve_benchmark.main,
        "serve-real": real_model.main,
        "serve-trace": trace_benchmark.main,
        "start": start.main,
        "float8": float8.main,
        "service": service_benchmark.main,
    }
    if len(sys.argv) < 2 or sys.argv[1] not in benchmarks:
        raise SystemExit(f"usage: scripts/benchmark {'|'.join(benchmarks)} [options]")
    benchmarks[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    main()
