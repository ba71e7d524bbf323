"""A large line is text for the most part, and takes little memory whatever it holds."""

from pathlib import Path

import pytest

from src.data.examples import ExampleFile
from src.data.lines import MAX_LINE_BYTES
from src.errors import UserError
from tests.measure import measure

FULL = MAX_LINE_BYTES - 100
MESSAGE = b'{"role":"user","content":"a"},{"role":"assistant","content":"b"},'
LARGE_LINES = {
    "brackets": (b'{"text":"a","x":[' + b"[[[[]]]]," * (FULL // 9) + b"0]}", False),
    "objects": (b'{"text":"a","x":[' + b'{"":{"":{}}},' * (FULL // 13) + b"0]}", False),
    "empty-objects": (b'{"text":"a","x":[' + b"{}," * (FULL // 3) + b"0]}", False),
    "numbers": (b'{"text":"a","x":[' + b"1.5," * (FULL // 4) + b"0]}", False),
    "strings": (b'{"text":"a","x":[' + b'"ab",' * (FULL // 5) + b"0]}", False),
    "keys": (b'{"text":"a"%b}' % b"".join(b',"%x":0' % n for n in range(700_000)), False),
    "messages": (b'{"messages":[%b]}' % (MESSAGE * (FULL // len(MESSAGE)))[:-1], False),
    "quotes": (b'"' * FULL, False),
    "backslashes": (b'"' + b"\\" * FULL, False),
    "escaped-quotes": (b'"' + b'\\"' * (FULL // 2), False),
    "a-text": (b'{"text":"%b"}' % (b"a" * FULL), True),
    "a-text-of-escapes": (b'{"text":"%b"}' % (b"\\n" * (FULL // 2)), True),
    "a-text-with-a-wide-letter": (b'{"text":"\xf0\x9f\x8d\x8e%b"}' % (b"a" * FULL), True),
    "a-text-of-wide-escapes": (b'{"text":"%b"}' % (b"\\ud83c\\udf4e" * (FULL // 12)), True),
    "a-long-conversation": (
        b'{"messages":[%b]}' % (MESSAGE.replace(b"b", b"b" * 400) * (FULL // 500))[:-1],
        True,
    ),
    "as-many-keys-as-may-be": (
        b'{"text":"a"%b}' % b"".join(b',"%040x":0' % n for n in range(170_000)),
        True,
    ),
    "as-many-brackets-as-may-be": (
        b'{"text":"%b","x":[%b0]}' % (b"a" * (FULL - 520_000), b"[[[]]]," * 74_000),
        True,
    ),
}


def test_no_line_of_full_length_takes_much_memory(tmp_path: Path):
    paths = [tmp_path / f"{name}.jsonl" for name in LARGE_LINES]
    for path, (line, _) in zip(paths, LARGE_LINES.values(), strict=True):
        assert 0.8 * MAX_LINE_BYTES < len(line) <= MAX_LINE_BYTES
        path.write_bytes(line)
    costs = measure("tests.data.jobs:check", [[str(path)] for path in paths])
    for path, cost, (_, is_good) in zip(paths, costs, LARGE_LINES.values(), strict=True):
        assert cost.outcome.startswith("taken" if is_good else "refused: "), (path.name, cost)
        assert cost.peak_mebibytes < 128, (path.name, cost)


def test_a_large_line_is_mostly_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("src.data.large_line.LARGE_LINE_BYTES", 60)
    monkeypatch.setattr("src.data.large_line.MAX_OTHER_BYTES", 30)
    path = tmp_path / "data.jsonl"
    line = '{"text": "%s", "x": [%s]}'
    for num_letters, numbers, is_good in [
        (2, "[], " * 9 + "0", True),  # a small line
        (50, "[], " * 4 + "0", True),
        (50, "[], " * 5 + "0", False),
        (50, '"[], [], [], [], []"', True),  # text with brackets
        (50, '"a\\\\", "[[[[[", "[[[[[[[[\\""', True),
    ]:
        path.write_text(line % ("a" * num_letters, numbers))
        if is_good:
            assert ExampleFile(path).check() == 1
        else:
            with pytest.raises(UserError, match="line 1: expected mostly text in a line of over"):
                ExampleFile(path).check()
