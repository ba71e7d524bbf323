"""Whole files that are no JSONL: what they are, by how they begin, and the way to JSONL."""

import re

from src.files.kind import other_kind

START_BYTES = 4096

_PANDAS = (
    "python3 -c \"import pandas; pandas.{}('OLD').to_json('NEW.jsonl', orient='records', "
    'lines=True)"'
)
_PYTHON = 'python3 -c "import {0}, json; [print(json.dumps(row)) for row in {1}]" > NEW.jsonl'
_ENCODING = "convert it with: iconv -f {} -t UTF-8 OLD > NEW.jsonl"
_UNPACK = "unpack it with: {} < OLD > NEW.jsonl"

_WAYS = {
    "a zip archive or Excel workbook": "unzip an archive; save the sheet of a workbook as CSV in "
    "UTF-8; write what a Word document says as rows",
    "a Parquet file": "convert it with: " + _PANDAS.format("read_parquet"),
    "an Arrow file": "convert it with: " + _PANDAS.format("read_feather"),
    "an SQLite database": 'export a table with: sqlite3 -json OLD "select ..." | jq -c ".[]" '
    "> NEW.jsonl",
    "an old Word or Excel file": "save the sheet as CSV in UTF-8",
    "a bzip2 file": _UNPACK.format("bunzip2"),
    "an xz file": _UNPACK.format("xz -d"),
    "a zstd file": _UNPACK.format("zstd -d"),
    "a gzip file": _UNPACK.format("gunzip"),
    "a tar archive": "unpack it with: tar xf OLD",
    "a UTF-16 text": _ENCODING.format("UTF-16"),
    "a UTF-32 text": _ENCODING.format("UTF-32"),
    "a UTF-16 text or a binary file": "if it is text: iconv -f UTF-16LE (or BE) -t UTF-8 OLD "
    "> NEW.jsonl",
    "an XML file": "write what it says as rows; a download may have met an error message in XML",
    "an HTML page": "a download may have met a page to sign in; get the file itself",
}

_WORDS = rb'"?\w+(?:[ .\-]\w+){0,2}"?'
_NO_JSON_BELOW = rb"[^\n]*\n(?!\s*[{\[])"
_TEXTS = (
    (rb"\[\s*(?:\{|\Z)", "a JSON array", "convert it with: jq -c '.[]' OLD > NEW.jsonl"),
    (
        rb"\{\s*'",
        "Python dictionaries in single quotes",
        "convert them with: " + _PYTHON.format("ast", "map(ast.literal_eval, open('OLD'))"),
    ),
    (
        rb"\{(?:[^\n]*(?:[\[{:]|(?<!\}),))?\s*\n",
        "JSON objects over several lines",
        "convert them with: jq -c . OLD > NEW.jsonl",
    ),
    (
        rb"%b(?P<delimiter>[,;\t])%b(?:(?P=delimiter)%b)*\s*?\n(?!\s*[{\[])" % ((_WORDS,) * 3),
        "a CSV file",
        "convert it with: "
        + _PYTHON.format("csv", "csv.DictReader(open('OLD', encoding='utf-8-sig')DELIMITER)"),
    ),
    (
        rb"-\s+\w+:\s" + _NO_JSON_BELOW,
        "YAML",
        "convert it with: yq -o=json -I=0 '.[]' OLD > NEW.jsonl",
    ),
    (
        rb"version https://git-lfs",
        "the pointer that Git LFS keeps in place of a file",
        "get the file itself with: git lfs pull",
    ),
    (
        rb"(?!null|true|false|NaN|Infinity)(?:[A-Za-z#]|[\xc3-\xf4])" + _NO_JSON_BELOW,
        "plain text",
        'write it as rows, for example {"text": "..."} for each document',
    ),
)
"""Patterns of the first lines; a bad line alone, above others that are good, is none of these."""
_PATTERNS = [(re.compile(pattern), kind, way) for pattern, kind, way in _TEXTS]


def name_other_kind(start: bytes) -> str | None:
    """Return what a file is that begins so, and what to do; None for what may be JSONL."""
    kind = other_kind(start)
    if kind is not None:
        way = _WAYS.get(kind)
        return f"{kind}; {way}" if way else kind
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    for pattern, kind, way in _PATTERNS:
        if match := pattern.match(text):
            return f"{kind}; {way.replace('DELIMITER', _delimiter(match))}"
    return None


def _delimiter(match: re.Match[bytes]) -> str:
    sign = match.groupdict().get("delimiter", b",").decode()
    return "" if sign == "," else f", delimiter={sign!r}"
