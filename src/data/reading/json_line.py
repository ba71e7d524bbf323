"""One line as JSON; what is none is named."""

import json
import sys
from collections import Counter
from typing import Any

from src.data.reading.fields import BadFormError, BadValueError, Record, excerpt

KINDS = '{"text"}, {"prompt", "completion"} or {"messages"}'

_NO_ZEROS = "remove them with: tr -d '\\000\\032' < OLD > NEW.jsonl"
_STRAY = {
    "\ufeff": "a byte order mark, as joined files have it within; make each a line break with: "
    "perl -pe 's/(^|\\})\\xef\\xbb\\xbf/$1\\n/g' OLD > NEW.jsonl",
    "\0": f"zero bytes, as a broken copy has them; copy the file again, or {_NO_ZEROS}",
    "\x1a": f"the end sign of old DOS programs (0x1a); {_NO_ZEROS}",
    "“": "quotes of a word processor; make them straight: sed 's/[“”]/\"/g' OLD > NEW.jsonl",
}
_WAYS = {
    ",": "; remove commas at the ends with: sed 's/,[[:space:]]*$//' OLD > NEW.jsonl",
    '{"': "; part the objects with: jq -c . OLD > NEW.jsonl",
}
"""By what stands behind the first object of a line."""
_OUTSIDE_OF_TEXT = (
    "Expecting value",
    "Extra data",
    "Expecting property name enclosed in double quotes",
)


def parse_line(line: bytes) -> Any:
    """Return the JSON value of a line; raises BadValueError."""
    try:
        return _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        found = f"the byte 0x{line[error.start]:02x} at column {error.start + 1}"
        raise BadFormError(
            f"expected UTF-8, found {found}; of a text from Windows: iconv -f WINDOWS-1252 "
            "-t UTF-8 OLD > NEW.jsonl",
            group="UTF-8",
        ) from None
    except json.JSONDecodeError as error:
        raise _not_json(error.doc, error.msg, error.colno) from None
    except RecursionError:
        raise BadValueError("expected a JSON object, found brackets nested too deep") from None
    except ValueError:  # Python reads no longer integers
        digits = sys.get_int_max_str_digits()
        raise BadValueError(f"expected JSON, found a number of over {digits:,} digits") from None


def _not_json(text: str, problem: str, column: int) -> BadValueError:
    stray = _STRAY.get(text[column - 1 : column])
    if stray and problem in _OUTSIDE_OF_TEXT:
        return BadFormError(f"expected a JSON object, found {stray}", group=stray)
    found = f"{excerpt(text)} ({problem.removesuffix(' at')} at column {column})"
    if problem == "Extra data":
        found, way = "more than one JSON value on the line", ""
        if text[column - 2 : column] == '""':
            found = "quotes doubled as in CSV"
        elif text.startswith("{"):
            if text[column - 1] == ",":
                found = "a comma behind the object"
            way = _WAYS.get(text[column - 1 :][:2], "")
        found += f"; expected one JSON object a line{way}"
        if way:
            return BadFormError(f"expected a JSON object {KINDS}, found {found}", group=way)
    sentence = f"expected a JSON object {KINDS}, found {found}"
    if problem.startswith("Expecting property name"):
        advice = "; keys stand in double quotes, and no comma stands behind the last value"
        return BadFormError(sentence + advice, group=problem)
    return BadValueError(sentence)


def _object(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise BadValueError(f"expected each key once, found {excerpt(twice)} twice")
    return record


def _constant(name: str) -> Any:
    raise BadValueError(f"expected JSON, found {name}")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
