"""Every bad line is named with what was found and what is expected; nothing is changed or lost."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from src.data.examples import ChatExample, CompletionExample, ExampleFile, TextExample
from src.data.lines import MAX_LINE_BYTES
from src.errors import UserError
from src.prompts import Turn

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
        ChatExample((Turn("u", "v"),), "s"),
    ]
    assert ExampleFile(path).check() == 3


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
    "long-integer": ('{"text": ' + "1" * 5000 + "}", "Exceeds the limit"),
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
    "content-parts": (CHAT % '{"role": "user", "content": [{"type": "text"}]}', "found a list"),
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
    assert "\n" not in message
    with pytest.raises(UserError, match="line 3"):
        read(path)


BAD_FILES = {
    "empty": (b"", "holds no examples"),
    "blank": (b"\n \n", "holds no examples"),
    "latin-1": (GOOD + b'{"text": "\xe4"}', "line 2: expected UTF-8, found the byte 0xe4"),
    "utf-16": ('{"text": "a"}'.encode("utf-16"), "found a UTF-16 text"),
    "zip": (b"PK\x03\x04" + b"\0" * 40, "found a zip archive or Excel workbook"),
    "parquet": (b"PAR1" + b"\0" * 40, "found a Parquet file"),
    "bad-gzip": (b"\x1f\x8b" + b"x" * 40, "the gzip file is damaged"),
    "cut-gzip": (gzip.compress(GOOD * 999)[:-20], "the gzip file is damaged or cut off"),
    "pretty-json": (b'[\n{"text": "a"}\n]', "a JSON array over several lines"),
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


def test_unknown_keys_are_counted(write_rows):
    file = ExampleFile(write_rows([{"text": "a", "id": 1}, {"text": "b", "id": 2, "x": 0}]))
    list(file)
    assert file.unknown_keys == {"id": 2, "x": 1}


def test_a_large_file_is_read_in_bounded_memory(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    with path.open("wb") as file:
        for _ in range(60):
            file.write(GOOD * 30_000)
    assert path.stat().st_size > 60e6
    limit = 64 * 2**20
    check = (
        "import resource, sys; from pathlib import Path; from src.data.examples import ExampleFile;"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit}));"
        f"print(ExampleFile(Path({str(path)!r})).check())"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.stdout.strip() == str(60 * 30_000), done.stderr
