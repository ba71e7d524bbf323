"""The user's file, line by line, as examples; a bad line is named with what is wrong."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from src.data.reading.example import Example
from src.data.reading.fields import BadFormError, BadValueError, describe
from src.data.reading.forms import find_form
from src.data.reading.json_line import KINDS, parse_line
from src.data.reading.lines import read_lines
from src.errors import UserError

MAX_LISTED_ERRORS = 10
MAX_BAD_LINES = 1_000_000
"""No more are counted: a small gzip file can hold a hundred million."""
MAX_KEY_CHARACTERS = 100
MAX_UNKNOWN_KEYS = 100


class ExampleFile:
    """The examples of one file; `unknown_keys` counts what was ignored while they were read."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = name or path.name
        self.unknown_keys: Counter[str] = Counter()

    def __iter__(self) -> Iterator[tuple[int, Example]]:
        """Yield (line number, example); the first bad line raises UserError."""
        for number, line in read_lines(self.path, self.name):
            try:
                yield number, self._read(line)
            except BadValueError as error:
                raise UserError(f"{self.name}, line {number}: {error}") from None

    def check(self) -> int:
        """Read the whole file and return the number of examples.

        Raises UserError that lists the first bad lines with the number of all of them; a form that
        many rows share is told once.
        """
        num_examples = num_bad = 0
        first: dict[object, str] = {}
        num_alike: Counter[object] = Counter()
        for number, line in read_lines(self.path, self.name):
            try:
                self._read(line)
                num_examples += 1
            except BadValueError as error:
                num_bad += 1
                if num_bad > MAX_BAD_LINES:
                    break
                alike = error.group if isinstance(error, BadFormError) else number
                if alike in first or len(first) < MAX_LISTED_ERRORS:
                    first.setdefault(alike, f"{self.name}, line {number}: {error}")
                    num_alike[alike] += 1
        if first:
            raise UserError("\n".join(self._listed(first, num_alike, num_bad)))
        if num_examples == 0:
            raise UserError(
                f"{self.name}: the file holds no examples; expected one JSON object a line: {KINDS}"
            )
        return num_examples

    def _listed(
        self, first: dict[object, str], num_alike: Counter[object], num_bad: int
    ) -> Iterator[str]:
        """Yield the first bad lines, below the number of all unless one sentence tells all."""
        num_told = sum(num_alike.values())
        if len(first) > 1 or num_told < num_bad:
            shown = f"more than {MAX_BAD_LINES:,}" if num_bad > MAX_BAD_LINES else f"{num_bad:,}"
            more = f", the first {MAX_LISTED_ERRORS} are" if num_told < num_bad else ""
            yield f"{self.name}: {shown} bad lines{more}:"
        for alike, sentence in first.items():
            others = num_alike[alike] - 1
            yield f"{sentence} (the same in {others:,} more)" if others else sentence

    def _read(self, line: bytes) -> Example:
        record = parse_line(line)
        if isinstance(record, str) and record.lstrip().startswith("{"):
            raise BadFormError(
                f"expected a JSON object {KINDS}, found a text that holds one; convert it with: "
                "jq -c fromjson OLD > NEW.jsonl",
                group="fromjson",
            )
        if not isinstance(record, dict):
            raise BadValueError(f"expected a JSON object {KINDS}, found {describe(record)}")
        form = find_form(record)
        if len(record) > len(form.required):
            unused = record.keys() - form.keys
            self._count_unknown(key for key in unused if record[key] not in (None, ""))
        return form.read(record, self._count_unknown)

    def _count_unknown(self, keys: Iterable[str]) -> None:
        for key in keys:
            # A file with ever new or huge keys must not fill the memory.
            key = key[:MAX_KEY_CHARACTERS]
            if key in self.unknown_keys or len(self.unknown_keys) < MAX_UNKNOWN_KEYS:
                self.unknown_keys[key] += 1
