"""Measure: `python -m benchmarks.run train|serve|serve-real|start|float8|service [options]`."""

import sys

from benchmarks.service import benchmark as service_benchmark
from benchmarks.serving import benchmark as serve_benchmark
from benchmarks.serving import real_model, start
from benchmarks.training import benchmark as train_benchmark
from benchmarks.training import float8


def main() -> None:
    """Run one of the benchmarks."""
    benchmarks = {
        "train": train_benchmark.main,
        "serve": serve_benchmark.main,
        "serve-real": real_model.main,
        "start": start.main,
        "float8": float8.main,
        "service": service_benchmark.main,
    }
    if len(sys.argv) < 2 or sys.argv[1] not in benchmarks:
        raise SystemExit(
            "usage: scripts/benchmark train|serve|serve-real|start|float8|service [options]"
        )
    benchmarks[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    main()
