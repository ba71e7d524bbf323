"""Every bad line is named with what was found and what is expected; nothing is changed or lost."""

import gzip
import json
from pathlib import Path

import pytest

from src.chat.conversation import Conversation
from src.data.reading.example import ChatExample, CompletionExample, TextExample
from src.data.reading.example_file import ExampleFile
from src.data.reading.lines import MAX_LINE_BYTES
from src.errors import UserError
from tests.data.measure_reading import write_file
from tests.measure import measure

TURNS = ({"role": "user", "content": "u"}, {"role": "assistant", "content": "v"})
GOOD = b'{"prompt": "a", "completion": "b"}\n'


def read(path: Path) -> list:
    return [example for _, example in ExampleFile(path)]


def test_the_three_kinds_may_be_mixed(write_rows):
    path = write_rows(
        [
            {"text": "a"},
            {"prompt": "", "completion": "b"},
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "u"},
                    {"role": "assistant", "content": "v"},
                ]
            },
        ]
    )
    assert read(path) == [
        TextExample("a"),
        CompletionExample("", "b"),
        ChatExample(Conversation(({"role": "system", "content": "s"}, *TURNS))),
    ]
    assert ExampleFile(path).check() == 3


def test_null_stands_for_a_kind_that_a_row_is_not_of(write_rows):
    """As pandas and datasets fill the holes in a table of mixed kinds."""
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}]
    holes = {"text": None, "prompt": None, "completion": None, "messages": None}
    path = write_rows(
        [
            {"text": None, "prompt": "a", "completion": "b"},
            {**holes, "text": "a", "id": 1},
            {**holes, "prompt": "a", "completion": "b"},
            {**holes, "messages": turns},
        ]
    )
    pair = CompletionExample("a", "b")
    assert read(path) == [pair, TextExample("a"), pair, ChatExample(Conversation(TURNS))]
    assert ExampleFile(path).check() == 4
    file = ExampleFile(path)
    list(file)
    assert file.unknown_keys == {"id": 1}


@pytest.mark.parametrize(
    "text",
    ["2024-01-01T00:00:00", "a\u00a0b", "a\u2028b", "a\x00b", "\ud83c\udf4e", "\ufeffx", "  x  "],
)
def test_text_is_kept_as_it_is(tmp_path: Path, text: str):
    path = tmp_path / "data.jsonl"
    for ascii_only in (True, False):
        line = json.dumps({"text": text}, ensure_ascii=ascii_only)
        path.write_text(line.encode("utf-16", "surrogatepass").decode("utf-16") + "\n")
        assert read(path) == [TextExample(text.encode("utf-16", "surrogatepass").decode("utf-16"))]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_line_ends_blank_lines_and_byte_order_mark(tmp_path: Path, end: bytes):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\n  \n" + GOOD.strip() + end)
    assert [number for number, _ in ExampleFile(path)] == [1, 4]


def test_gzip_is_known_by_its_content(tmp_path: Path):
    path = tmp_path / "data"
    path.write_bytes(gzip.compress(GOOD * 3))
    assert len(read(path)) == 3


CHAT = '{"messages": [%s]}'
USER = '{"role": "user", "content": "a"}'
BAD_LINES = {
    "null": ("null", "found null"),
    "number": ("1", "found the number 1"),
    "array": ('["a"]', "found a list"),
    "text": ('"a"', 'found the text "a"'),
    "no-json": ("prompt,completion", 'found "prompt,completion"'),
    "cut-off": ('{"text": "a', "Unterminated string"),
    "two-values": ('{"text": "a"} {"text": "b"}', "more than one JSON value"),
    "nan": ('{"text": NaN}', "found NaN"),
    "infinity": ('{"text": -Infinity}', "found -Infinity"),
    "deep": ("[" * 100_000, "found brackets nested too deep"),
    "long-integer": ('{"text": ' + "1" * 5000 + "}", "found a number of over 4,300 digits"),
    "duplicate-key": ('{"text": "a", "text": "b"}', 'found "text" twice'),
    "no-known-key": ('{"question": "a"}', 'found the keys "question"'),
    "two-kinds": ('{"text": "a", "prompt": "b"}', 'found the keys "prompt", "text"'),
    "no-completion": ('{"prompt": "a"}', 'expected the key "completion"'),
    "no-prompt": ('{"completion": "a"}', 'expected the key "prompt"'),
    "completion-null": ('{"prompt": "a", "completion": null}', "found null"),
    "completion-number": ('{"prompt": "a", "completion": 4}', "found the number 4"),
    "completion-list": ('{"prompt": "a", "completion": ["b"]}', "found a list"),
    "completion-empty": ('{"prompt": "a", "completion": ""}', "found an empty string"),
    "prompt-true": ('{"prompt": true, "completion": "b"}', "found true"),
    "text-object": ('{"text": {"a": 1}}', "found an object"),
    "text-empty": ('{"text": ""}', "found an empty string"),
    "surrogate": ('{"text": "\\ud800"}', "half of a surrogate pair"),
    "messages-text": ('{"messages": "a"}', "expected a list of messages"),
    "messages-empty": ('{"messages": []}', "found an empty list"),
    "message-text": (CHAT % '"a"', 'found the text "a"'),
    "role-unknown": (CHAT % '{"role": "bot", "content": "a"}', 'found the text "bot"'),
    "role-missing": (CHAT % '{"content": "a"}', '"messages[0].role": expected "system" or "user"'),
    "role-twice": (CHAT % f"{USER}, {USER}", '"messages[1].role": expected "assistant"'),
    "assistant-first": (CHAT % '{"role": "assistant", "content": "a"}', 'expected "system" or'),
    "ends-with-user": (CHAT % USER, "found the user's"),
    "content-missing": (CHAT % '{"role": "user"}', 'expected the key "messages[0].content"'),
    "true": ("true", "found true"),
    "array-of-objects": ('[{"text": "a"}]', "found a list"),
    "empty-object": ("{}", "found the keys none"),
    "empty-array": ("[]", "found an empty list"),
    "trailing-comma": ('{"text": "a",}', "column"),
    "single-quotes": ("{'text': 'a'}", "column"),
    "python-none": ('{"text": None}', "column"),
    "comment": ('// {"text": "a"}', "column"),
    "number-plus": ('{"text": +1}', "column"),
    "number-zero": ('{"text": 01}', "column"),
    "number-hex": ('{"text": 0x10}', "column"),
    "raw-tab": ('{"text": "a\tb"}', "Invalid control character"),
    "raw-escape": ('{"text": "\x1b[31m"}', "Invalid control character"),
    "raw-nul": ('{"text": "\x00"}', "Invalid control character"),
    "bad-escape": ('{"text": "\\x41"}', "Invalid \\escape"),
    "short-escape": ('{"text": "\\u12"}', "escape"),
    "control-before": ('\x1b[2J{"text": "a"}', "column 1"),
    "byte-order-mark": ('\ufeff{"text": "a"}', "found a byte order mark"),
    "no-break-space": ('\xa0{"text": "a"}', "column 1"),
    "line-separator": ('{"text": "a"}\u2028{"text": "b"}', "more than one JSON value"),
    "carriage-return": ('{"text": "a"}\r{"text": "b"}', "more than one JSON value"),
    "text-after": ('{"text": "a"} really', "more than one JSON value"),
    "deep-objects": ('{"a":' * 100_000, "found brackets nested too deep"),
    "deep-in-text": ('{"text": ' + "[" * 100_000, "found brackets nested too deep"),
    "minus-infinity": ('{"prompt": "a", "completion": -Infinity}', "found -Infinity"),
    "nan-elsewhere": ('{"text": "a", "score": NaN}', "found NaN"),
    "huge-float": ('{"text": 1e999}', "found the number inf"),
    "long-negative": ('{"text": -' + "1" * 5000 + "}", "a number of over 4,300 digits"),
    "duplicate-deep": (CHAT % '{"role": "user", "role": "user"}', 'found "role" twice'),
    "duplicate-other": ('{"text": "a", "x": 1, "x": 2}', 'found "x" twice'),
    "duplicate-escaped": ('{"text": "a", "te\\u0078t": "b"}', 'found "text" twice'),
    "case-differs": ('{"Text": "a"}', 'found the keys "Text"'),
    "blank-key": ('{"text ": "a"}', 'found the keys "text "'),
    "comma-after": ('{"text": "a"},', "found a comma behind the object"),
    "comma-between": ('{"text": "a"}, {"text": "b"}', "found a comma behind the object"),
    "csv-doubled": ('"{""text"": ""a""}"', "found quotes doubled as in CSV"),
    "two-kinds-null": (
        '{"text": null, "messages": null}',
        'found only null in the keys "messages"',
    ),
    "two-kinds-prompt": ('{"text": null, "prompt": "a"}', 'expected the key "completion"'),
    "two-kinds-no-completion": (
        '{"text": null, "prompt": "a", "completion": null}',
        '"completion": expected text, found null',
    ),
    "two-kinds-and-a-hole": ('{"text": "a", "prompt": "b", "messages": null}', 'keys "messages", '),
    "three-kinds": (
        '{"text": "a", "prompt": "b", "completion": "c", "messages": []}',
        '"messages"',
    ),
    "instruction": ('{"instruction": "a"}', 'expected the key "output"'),
    "conversations": ('{"conversations": []}', "found an empty list"),
    "prompt-null": ('{"prompt": null, "completion": "b"}', "found null"),
    "prompt-list": ('{"prompt": ["a"], "completion": "b"}', "found a list"),
    "text-true": ('{"text": true}', "found true"),
    "text-float": ('{"text": 1.5}', "found the number 1.5"),
    "text-null": ('{"text": null}', "found null"),
    "text-list": ('{"text": []}', "found an empty list"),
    "surrogate-low": ('{"text": "\\udc00"}', "half of a surrogate pair"),
    "surrogate-swapped": ('{"text": "\\udc00\\ud800"}', "half of a surrogate pair"),
    "surrogate-prompt": ('{"prompt": "\\ud83c", "completion": "b"}', '"prompt": expected Unicode'),
    "surrogate-content": (
        CHAT % '{"role": "user", "content": "\\ud800"}',
        '"messages[0].content": expected Unicode',
    ),
    "messages-object": ('{"messages": {"role": "user"}}', "found an object"),
    "messages-null": ('{"messages": null}', "found null"),
    "message-null": (CHAT % "null", "found null"),
    "message-list": (CHAT % "[]", "found an empty list"),
    "role-list": (CHAT % '{"role": ["user"], "content": "a"}', "found a list"),
    "role-case": (CHAT % '{"role": "User", "content": "a"}', 'found the text "User"'),
    "role-tool": (CHAT % f'{USER}, {{"role": "tool", "content": "a"}}', 'found the text "tool"'),
    "system-twice": (
        CHAT % ", ".join(['{"role": "system", "content": "a"}'] * 2),
        'expected "user"',
    ),
    "system-alone": (CHAT % '{"role": "system", "content": "a"}', "found the system's"),
    "system-late": (CHAT % f'{USER}, {{"role": "system", "content": "a"}}', 'expected "assistant"'),
    "content-null": (CHAT % '{"role": "user", "content": null}', "found null"),
    "answer-empty": (
        CHAT % f'{USER}, {{"role": "assistant", "content": ""}}',
        "found an empty string",
    ),
    "tag": ("<text>a</text>", 'found "<text>a</text>"'),
    "csv-quoted": ('"prompt","completion"', "more than one JSON value"),
    "long-garbage": ("x" * 1_000_000, "..."),
    "escape-in-garbage": ("\x1b]0;title\x07" * 10, 'found "?]0;title?'),
    "content-parts": (
        CHAT % '{"role": "user", "content": [{"type": "text"}]}',
        'found only "type"',
    ),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, name: str):
    line, found = BAD_LINES[name]
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD + b"\n" + line.encode() + b"\n" + GOOD)
    with pytest.raises(UserError) as caught:
        ExampleFile(path).check()
    message = str(caught.value)
    assert message.startswith("data.jsonl, line 3: ")
    assert found in message
    assert "expected" in message
    assert len(message) < 400
    assert message.isprintable()
    with pytest.raises(UserError, match="line 3"):
        read(path)


BAD_FILES = {
    "empty": (b"", "holds no examples"),
    "blank": (b"\n \n", "holds no examples"),
    "latin-1": (GOOD + b'{"text": "\xe4"}', "line 2: expected UTF-8, found the byte 0xe4"),
    "utf-16": ('{"text": "a"}'.encode("utf-16"), "found a UTF-16 text"),
    "zip": (b"PK\x03\x04" + b"\0" * 40, "found a zip archive or Excel workbook"),
    "parquet": (b"PAR1" + b"\0" * 40, "found a Parquet file"),
    "bad-gzip": (b"\x1f\x8b" + b"x" * 40, "the gzip data are damaged"),
    "cut-gzip": (gzip.compress(GOOD * 999)[:-20], "the gzip data are damaged or cut off"),
    "pretty-json": (b'[\n{"text": "a"}\n]', "found a JSON array; convert it with: jq -c '.[]'"),
    "utf-16-big": ('{"text": "a"}'.encode("utf-16-be"), "found a UTF-16 text or a binary file"),
    "utf-16-little": ('{"text": "a"}'.encode("utf-16-le"), "found a UTF-16 text or a binary file"),
    "utf-32-big": ('{"text": "a"}'.encode("utf-32-be"), "found a UTF-16 text or a binary file"),
    "tar": (b"data.jsonl".ljust(257, b"\0") + b"ustar\x0000" + b"\0" * 248, "found a tar archive"),
    "tar-gz": (
        gzip.compress(b"data.jsonl".ljust(257, b"\0") + b"ustar  \0"),
        "expected a JSONL file in UTF-8, found packed in gzip a tar archive",
    ),
    "utf-16-big-marked": (b"\xfe\xff" + '{"text": "a"}'.encode("utf-16-be"), "a UTF-16 text"),
    "utf-32": ('{"text": "a"}'.encode("utf-32"), "found a UTF-32 text"),
    "utf-8-overlong": (b'{"text": "\xc0\x80"}', "line 1: expected UTF-8, found the byte 0xc0"),
    "utf-8-surrogate": (b'{"text": "\xed\xa0\x80"}', "line 1: expected UTF-8"),
    "utf-8-cut": (GOOD + b'{"text": "\xe2\x80"}', "line 2: expected UTF-8"),
    "utf-8-beyond": (b'{"text": "\xf5\x80\x80\x80"}', "line 1: expected UTF-8"),
    "windows-1252": (b'{"text": "\x93a\x94"}', "line 1: expected UTF-8, found the byte 0x93"),
    "cut-last-line": (GOOD * 2 + GOOD[:-9], "line 3: expected a JSON object"),
    "pretty-object": (
        b'{\n"text": "a"\n}',
        "JSON objects over several lines; convert them with: jq -c .",
    ),
    "carriage-returns-only": (GOOD.replace(b"\n", b"\r") * 2, "more than one JSON value"),
    "xml": (b"<?xml version='1.0'?><rows/>", "found an XML file; write what it says as rows"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "csv": (b"prompt,completion\na,b\n", "found a CSV file; convert it with: python3 -c"),
    "pdf": (b"%PDF-1.7\n", "found a PDF"),
    "html": (b"<!DOCTYPE html><html>", "found an HTML page"),
    "html-plain": (b"<html><body>Sign in</body></html>", "found an HTML page"),
    "pickle": (b"\x80\x04\x95" + b"\0" * 40, "found a pickle"),
    "bzip2": (b"BZh91AY&SY", "found a bzip2 file"),
    "xz": (b"\xfd7zXZ\0\0", "found an xz file"),
    "zstd": (b"\x28\xb5\x2f\xfd", "found a zstd file"),
    "arrow": (b"ARROW1\0\0", "found an Arrow file"),
    "sqlite": (b"SQLite format 3\0", "found an SQLite database"),
    "excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "found an old Word or Excel file"),
    "nul-bytes": (b"\0" * 5000, "found a UTF-16 text or a binary file"),
    "gzip-of-zip": (gzip.compress(b"PK\x03\x04" * 10), "a zip archive or Excel workbook"),
    "gzip-twice": (gzip.compress(gzip.compress(GOOD)), "found packed in gzip a gzip file"),
    "gzip-checksum": (gzip.compress(GOOD)[:-8] + b"\0" * 8, "the gzip data are damaged"),
    "gzip-tail": (gzip.compress(GOOD) + b"tail", "the gzip data are damaged"),
    "gzip-header": (b"\x1f\x8b", "the gzip data are damaged"),
    "blank-lines": (b"\n" * 200_000 + GOOD, "line 100001: expected one JSON object a line"),
    "blank-lines-in-parts": ((b"\n" * 50_000 + GOOD) * 3, "found 100,021 blank lines among"),
    "long-line-gzip": (gzip.compress(b"a" * (MAX_LINE_BYTES + 1)), "line 1: the line is longer"),
    "long-line-second": (GOOD + b" " * (MAX_LINE_BYTES + 1), "line 2: the line is longer"),
    "long-line": (b'{"text": "' + b"a" * MAX_LINE_BYTES, "line 1: the line is longer than"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named(tmp_path: Path, name: str):
    content, found = BAD_FILES[name]
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        ExampleFile(path).check()
    assert found in str(caught.value)
    assert str(caught.value).startswith("data.jsonl")
    assert "expected" in str(caught.value)


def test_the_traps_are_many():
    assert len(BAD_LINES) + len(BAD_FILES) >= 130


def test_huge_keys_are_not_kept(write_rows):
    file = ExampleFile(write_rows([{"text": "a", "k" * 100_000 + str(n): 1} for n in range(3)]))
    list(file)
    assert file.unknown_keys == {"k" * 100: 3}


def test_a_gibibyte_without_a_line_break_is_refused_at_once(tmp_path: Path):
    path, packed = tmp_path / "plain.jsonl", tmp_path / "packed.jsonl.gz"
    with path.open("wb") as file:
        file.write(b"{}")
        file.truncate(2**30)
    with gzip.open(packed, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"a" * 2**24)
    for name in (path, packed):
        (cost,) = measure("tests.data.jobs:check", [[str(name)]])
        assert "line 1: the line is longer than" in cost.outcome
        assert cost.seconds < 0.5
        assert cost.peak_mebibytes < 64


def test_the_first_ten_bad_lines_are_listed_with_the_total(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_bytes((GOOD + b"null\n") * 25)
    with pytest.raises(UserError) as caught:
        ExampleFile(path).check()
    head, *lines = str(caught.value).splitlines()
    assert "25 bad lines" in head
    assert [line.split(":")[0] for line in lines] == [
        f"data.jsonl, line {number}" for number in range(2, 22, 2)
    ]


def test_no_more_than_so_many_bad_lines_are_read(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("src.data.reading.example_file.MAX_BAD_LINES", 20)
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"1\n" * 20 + GOOD)
    with pytest.raises(UserError, match="jsonl: 20 bad lines, the first 10 are:"):
        ExampleFile(path).check()
    # What comes after the last of them is not read: it would be an error of its own.
    path.write_bytes(b"1\n" * 21 + b"y" * (MAX_LINE_BYTES + 1))
    with pytest.raises(UserError, match="jsonl: more than 20 bad lines, the first 10 are:"):
        ExampleFile(path).check()


def test_unknown_keys_are_counted(write_rows):
    file = ExampleFile(write_rows([{"text": "a", "id": 1}, {"text": "b", "id": 2, "x": 0}]))
    list(file)
    assert file.unknown_keys == {"id": 2, "x": 1}


def test_a_large_file_is_read_in_bounded_memory(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    num_examples = write_file(path, 40_000_000, 900)
    (cost,) = measure("tests.data.jobs:check", [[str(path)]], limit_mebibytes=64)
    assert cost.outcome == "taken"
    assert cost.peak_mebibytes < 64
    assert ExampleFile(path).check() == num_examples
