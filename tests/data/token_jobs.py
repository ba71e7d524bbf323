"""Work on tokens that tests measure from outside."""

from pathlib import Path

from src.data.dataset_writer import split_dataset, write_dataset
from src.data.tokenization import TokenizedExample


def write_and_split(folder: str, num_examples: str) -> None:
    """Write a data set of examples of 1,000 tokens and take it apart in the middle."""
    example = TokenizedExample(list(range(1000)), list(range(1000)), [True] * 1000)
    count = int(num_examples)
    examples = ((number, example) for number in range(count))
    write_dataset(examples, Path(folder) / "train", name="data.jsonl")
    split_dataset(Path(folder) / "train", count // 2, Path(folder) / "validation")
