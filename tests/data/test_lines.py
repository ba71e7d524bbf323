"""A line of full length is taken, and takes little memory whatever it holds."""

from pathlib import Path

from src.data.reading.lines import MAX_LINE_BYTES
from tests.measure import measure

FULL = MAX_LINE_BYTES - 100
MESSAGE = b'{"role":"user","content":"a"},{"role":"assistant","content":"b"},'
LONG_LINES = {
    "brackets": b'{"text":"a","x":[' + b"[[[[]]]]," * (FULL // 9) + b"0]}",
    "objects": b'{"text":"a","x":[' + b'{"":{"":{}}},' * (FULL // 13) + b"0]}",
    "empty-objects": b'{"text":"a","x":[' + b"{}," * (FULL // 3) + b"0]}",
    "numbers": b'{"text":"a","x":[' + b"1.5," * (FULL // 4) + b"0]}",
    "strings": b'{"text":"a","x":[' + b'"ab",' * (FULL // 5) + b"0]}",
    "keys": b'{"text":"a"%b}' % b"".join(b',"%x":0' % n for n in range(FULL // 10)),
    "messages": b'{"messages":[%b]}' % (MESSAGE * (FULL // len(MESSAGE)))[:-1],
    "a-text": b'{"text":"%b"}' % (b"a" * FULL),
    "a-text-of-escapes": b'{"text":"%b"}' % (b"\\n" * (FULL // 2)),
    "a-text-with-a-wide-letter": b'{"text":"\xf0\x9f\x8d\x8e%b"}' % (b"a" * FULL),
    "a-text-of-wide-escapes": b'{"text":"%b"}' % (b"\\ud83c\\udf4e" * (FULL // 12)),
    "quotes": b'"' * FULL,
    "backslashes": b'"' + b"\\" * FULL,
    "escaped-quotes": b'"' + b'\\"' * (FULL // 2),
}
REFUSED = ("quotes", "backslashes", "escaped-quotes")


def test_no_line_of_full_length_takes_much_memory(tmp_path: Path):
    paths = [tmp_path / f"{name}.jsonl" for name in LONG_LINES]
    for path, line in zip(paths, LONG_LINES.values(), strict=True):
        assert 0.8 * MAX_LINE_BYTES < len(line) <= MAX_LINE_BYTES
        path.write_bytes(line)
    costs = measure("tests.data.jobs:check", [[str(path)] for path in paths])
    for path, cost in zip(paths, costs, strict=True):
        assert cost.outcome.startswith("refused: " if path.stem in REFUSED else "taken"), (
            path,
            cost,
        )
        assert cost.peak_mebibytes < 128, (path.name, cost)
