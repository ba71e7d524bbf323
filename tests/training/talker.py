"""In place of a worker: a rank that prints much and then tells that all of it was taken."""

import sys
from pathlib import Path

if __name__ == "__main__":
    for number in range(50_000):
        print("step", number)
    (Path(sys.argv[1]).parent / "told").write_text("all")
