"""The results of a GPU check: a line of JSON each, kept as they come, and a table of them."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """What one check of a stage found."""

    stage: str
    check: str
    value: float | str
    unit: str = ""
    is_right: bool | None = None
    """None where nothing can be wrong, as with a speed."""
    share: str = ""
    """Of what the machine reaches at most."""
    note: str = ""


class Results:
    """The results in a folder; each is safe from whatever happens next."""

    def __init__(self, folder: Path) -> None:
        self._lines, self._table = folder / "results.jsonl", folder / "results.md"

    def clear(self) -> None:
        """Make the folder, and forget the results of an earlier check in it."""
        self._lines.parent.mkdir(parents=True, exist_ok=True)
        self._lines.unlink(missing_ok=True)

    def add(self, result: Result) -> None:
        """Append a result, which other processes may do at the same time."""
        with self._lines.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")

    def read(self) -> list[Result]:
        """Return all results so far."""
        if not self._lines.is_file():
            return []
        return [Result(**json.loads(line)) for line in self._lines.read_text().splitlines()]

    def write_table(self) -> None:
        """Write all results as a table in Markdown."""
        self._table.write_text("\n".join(_rows(self.read())) + "\n")


def _rows(results: list[Result]) -> Iterator[str]:
    yield from ("| stage | check | result | share | right | note |", "|---|---|---|---|---|---|")
    for result in results:
        cells = (
            *(result.stage, result.check, number(result), result.share),
            *(right(result), result.note),
        )
        yield "| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |"


def number(result: Result) -> str:
    """Return the value with its unit."""
    value = result.value
    text = value if isinstance(value, str) else f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"
    return f"{text} {result.unit}".strip()


def right(result: Result) -> str:
    """Return whether the result is right, in a word."""
    return {True: "yes", False: "NO", None: ""}[result.is_right]
