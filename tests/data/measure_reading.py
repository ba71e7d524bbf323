"""How fast and in how much memory a large training file is checked: scripts/measure-reading."""

import argparse
import json
import random
import tempfile
from pathlib import Path

from tests.measure import measure


def write_file(path: Path, num_bytes: int, characters: int) -> int:
    """Write a file of all three kinds of examples, and return how many there are."""
    rng = random.Random(0)
    words = [f"{rng.choice(['ä', 'a', '“', ' '])}{rng.randrange(10**6)}" for _ in range(5000)]
    lines = []
    for number in range(3000):
        text = " ".join(rng.choices(words, k=max(2, characters // 7)))
        middle = len(text) // 2
        user, answer = text[:middle], text[middle:]
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        rows = [{"text": text}, {"prompt": user, "completion": answer}, {"messages": turns}]
        lines.append(json.dumps(rows[number % 3], ensure_ascii=number % 2 == 0))
    block = "".join(f"{line}\n" for line in lines).encode()
    num_blocks = -(-num_bytes // len(block))
    with path.open("wb") as file:
        for _ in range(num_blocks):
            file.write(block)
    return num_blocks * len(lines)


def main(gigabytes: float, characters: int) -> None:
    """Write a file, check it in a process of its own, and print what that took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        num_examples = write_file(path, int(gigabytes * 1e9), characters)
        size = path.stat().st_size
        (cost,) = measure("tests.data.jobs:check", [[str(path)]], limit_mebibytes=128)
    print(
        f"{size / 1e9:.2f} GB, {num_examples:,} examples of {size / num_examples:,.0f} bytes: "
        f"{cost.outcome} in {cost.seconds:.1f} s of CPU, {size / 1e6 / cost.seconds:.0f} MB/s, "
        f"peak {cost.peak_mebibytes:.0f} MiB"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="scripts/measure-reading")
    parser.add_argument("gigabytes", type=float)
    parser.add_argument("characters", type=int, nargs="?", default=900, help="of an example")
    options = parser.parse_args()
    main(options.gigabytes, options.characters)
