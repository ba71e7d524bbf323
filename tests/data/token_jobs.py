"""Work on tokens that tests measure from outside."""

from pathlib import Path

from src.data.token_file import write_tokens
from src.data.tokenization import TokenizedExample


def write(path: str, num_examples: str) -> None:
    """Write a token file of examples of 1,000 tokens."""
    example = TokenizedExample(list(range(1000)), list(range(1000)), [True] * 1000)
    write_tokens(((number, example) for number in range(int(num_examples))), Path(path))
