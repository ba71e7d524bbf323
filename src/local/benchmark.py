"""Speed beside the peers': `python -m src.local.benchmark train|serve [options]`."""

import sys

from src.local import serve_benchmark, train_benchmark


def main() -> None:
    """Run one of the benchmarks."""
    benchmarks = {"train": train_benchmark.main, "serve": serve_benchmark.main}
    if len(sys.argv) < 2 or sys.argv[1] not in benchmarks:
        raise SystemExit("usage: scripts/benchmark train|serve [options]")
    benchmarks[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    main()
