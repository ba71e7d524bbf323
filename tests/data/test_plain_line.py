"""A line that is taken at a glance is one that is taken with care; nothing in it is lost."""

import json
from itertools import product
from pathlib import Path

import pytest

from src.data.examples import ExampleFile
from src.data.plain_line import is_plainly_good
from src.errors import UserError
from tests.data.measure_reading import write_file
from tests.data.test_examples import BAD_LINES


@pytest.mark.parametrize("characters", [20, 300])
def test_usual_lines_are_plain(tmp_path: Path, characters: int):
    path = tmp_path / "data.jsonl"
    write_file(path, 1, characters)
    for line in path.read_bytes().splitlines():
        assert is_plainly_good(line), line


def test_quotes_and_escapes_are_plain():
    rows = [
        {"text": 'He said: "a\\"\n"'},
        {"completion": '"', "prompt": '\\"'},
        {"messages": [{"role": r, "content": f'"{r}"\u2028'} for r in ("user", "assistant")]},
    ]
    assert all(is_plainly_good(json.dumps(row, indent=1).encode()) for row in rows)


def test_no_bad_line_is_plain():
    assert not any(is_plainly_good(line.encode()) for line, _ in BAD_LINES.values())


def test_a_key_that_comes_twice_is_never_plain(tmp_path: Path):
    """Whatever else the line holds to make up for the quotes of what is lost."""
    path = tmp_path / "data.jsonl"
    keys = ["text", "te\\u0078t", "\\u0074ext"]
    texts = ["a", "", '\\"', "\\u0022", '\\"' * 4, "\\u0022" * 4, "\\\\u0022" * 2, '\\u0022\\"']
    num_tried = 0
    for key, again, lost, kept in product(keys, keys, texts, texts):
        line = f'{{"{key}": "{lost}", "{again}": "{kept}"}}'.encode()
        assert not is_plainly_good(line), line
        path.write_bytes(line)
        with pytest.raises(UserError, match='found "text" twice'):
            ExampleFile(path).check()
        num_tried += 1
    assert num_tried == 9 * 64
