"""Work on training files that tests measure from outside; imports no more than that takes."""

from pathlib import Path

from src.data.reading.example_file import ExampleFile


def check(path: str) -> None:
    """Check a training file."""
    ExampleFile(Path(path)).check()
