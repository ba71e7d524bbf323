"""The user's file, line by line, as examples; a bad line is named with what is wrong."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.chat.conversation import Conversation, Message
from src.data.lines import read_lines
from src.errors import UserError
from src.files.printable import printable

MAX_LISTED_ERRORS = 10
MAX_BAD_LINES = 1_000_000
"""No more are counted: a small gzip file can hold a hundred million."""
MAX_KEY_CHARACTERS = 100
MAX_UNKNOWN_KEYS = 100


@dataclass(frozen=True)
class TextExample:
    """Every token is a target."""

    text: str


@dataclass(frozen=True)
class CompletionExample:
    """The completion is the target."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class ChatExample:
    """Every assistant turn is a target."""

    conversation: Conversation


Example = TextExample | CompletionExample | ChatExample

KIND_OF = {"text": "text", "prompt": "pair", "completion": "pair", "messages": "chat"}
KINDS = '{"text"}, {"prompt", "completion"} or {"messages"}'


class _BadLineError(Exception):
    """What is wrong with one line."""


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
            except _BadLineError as error:
                raise UserError(f"{self.name}, line {number}: {error}") from None

    def check(self) -> int:
        """Read the whole file and return the number of examples.

        Raises UserError that lists the first bad lines with the number of all of them.
        """
        num_examples = num_bad = 0
        listed: list[str] = []
        for number, line in read_lines(self.path, self.name):
            try:
                self._read(line)
                num_examples += 1
            except _BadLineError as error:
                num_bad += 1
                if num_bad > MAX_BAD_LINES:
                    break
                if num_bad <= MAX_LISTED_ERRORS:
                    listed.append(f"{self.name}, line {number}: {error}")
        if num_bad > 1:
            shown = f"more than {MAX_BAD_LINES:,}" if num_bad > MAX_BAD_LINES else f"{num_bad:,}"
            more = f", the first {MAX_LISTED_ERRORS} are" if num_bad > MAX_LISTED_ERRORS else ""
            listed.insert(0, f"{self.name}: {shown} bad lines{more}:")
        if listed:
            raise UserError("\n".join(listed))
        if num_examples == 0:
            raise UserError(
                f"{self.name}: the file holds no examples; expected one JSON object a line: {KINDS}"
            )
        return num_examples

    def _read(self, line: bytes) -> Example:
        record = _parse(line)
        if not isinstance(record, dict):
            raise _BadLineError(f"expected a JSON object {KINDS}, found {_describe(record)}")
        # Tables of mixed kinds fill their holes with null.
        named = record.keys() & KIND_OF.keys()
        kinds = {KIND_OF[key] for key in named}
        if len(kinds) > 1:
            kinds = {KIND_OF[key] for key in named if record[key] is not None}
        if len(kinds) != 1:
            found = "only null in the keys" if named and not kinds else "the keys"
            raise _BadLineError(f"expected one of {KINDS}, found {found} {_keys(record)}")
        self._count_unknown(record.keys() - KIND_OF.keys())
        match kinds.pop():
            case "text":
                return TextExample(_text(record, "text", may_be_empty=False))
            case "chat":
                return self._chat(record["messages"])
            case _:
                return CompletionExample(
                    _text(record, "prompt"), _text(record, "completion", may_be_empty=False)
                )

    def _chat(self, messages: Any) -> ChatExample:
        if not isinstance(messages, list) or not messages:
            found = _describe(messages)
            raise _BadLineError(f'"messages": expected a list of messages, found {found}')
        said: list[Message] = []
        expected: tuple[str, ...] = ("system", "user")
        for number, message in enumerate(messages):
            where = f"messages[{number}]"
            if not isinstance(message, dict):
                found = _describe(message)
                raise _BadLineError(f'"{where}": expected {{"role", "content"}}, found {found}')
            role = message.get("role")
            if role not in expected:
                roles = " or ".join(f'"{name}"' for name in expected)
                raise _BadLineError(f'"{where}.role": expected {roles}, found {_describe(role)}')
            content = _text(message, "content", f"{where}.", may_be_empty=role != "assistant")
            self._count_unknown(f"messages[].{key}" for key in message.keys() - {"role", "content"})
            said.append({"role": role, "content": content})
            expected = ("assistant",) if role == "user" else ("user",)
        if said[-1]["role"] != "assistant":
            raise _BadLineError(
                '"messages": expected the last message to be the assistant\'s, found the '
                f"{messages[-1]['role']}'s"
            )
        return ChatExample(Conversation(tuple(said)))

    def _count_unknown(self, keys: Iterable[str]) -> None:
        for key in keys:
            # A file with ever new or huge keys must not fill the memory.
            key = key[:MAX_KEY_CHARACTERS]
            if key in self.unknown_keys or len(self.unknown_keys) < MAX_UNKNOWN_KEYS:
                self.unknown_keys[key] += 1


def _parse(line: bytes) -> Any:
    try:
        text = line.decode("utf-8")
        return _DECODER.decode(text)
    except UnicodeDecodeError as error:
        found = f"the byte 0x{line[error.start]:02x} at column {error.start + 1}"
        raise _BadLineError(f"expected UTF-8, found {found}") from None
    except json.JSONDecodeError as error:
        raise _not_json(error.doc, error.msg, error.colno) from None
    except RecursionError:
        raise _BadLineError("expected a JSON object, found brackets nested too deep") from None
    except ValueError:  # Python reads no longer integers
        digits = sys.get_int_max_str_digits()
        raise _BadLineError(f"expected JSON, found a number of over {digits:,} digits") from None


def _not_json(text: str, problem: str, column: int) -> _BadLineError:
    found = f"{_excerpt(text)} ({problem} at column {column})"
    if text.startswith("[") and len(text) < 3:
        found = "a JSON array over several lines; expected one JSON object a line"
    elif problem == "Extra data":
        found = "more than one JSON value on the line"
        if text[column - 1] == "," and text.startswith("{"):
            found = "a comma behind the object"
        elif text[column - 2 : column] == '""':
            found = "quotes doubled as in CSV"
        found += "; expected one JSON object a line"
    return _BadLineError(f"expected a JSON object {KINDS}, found {found}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise _BadLineError(f"expected each key once, found {_excerpt(twice)} twice")
    return record


def _constant(name: str) -> Any:
    raise _BadLineError(f"expected JSON, found {name}")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _text(record: dict[str, Any], key: str, where: str = "", *, may_be_empty: bool = True) -> str:
    value, label = record.get(key), f'"{where}{key}"'
    if key not in record:
        raise _BadLineError(f"expected the key {label}, found only {_keys(record)}")
    if not isinstance(value, str):
        raise _BadLineError(f"{label}: expected text, found {_describe(value)}")
    if not value and not may_be_empty:
        raise _BadLineError(f"{label}: expected text, found an empty string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _BadLineError(
            f"{label}: expected Unicode text, found half of a surrogate pair "
            f"(\\u{ord(value[error.start]):04x})"
        ) from None
    return value


def _describe(value: Any) -> str:
    match value:
        case None | True | False:
            return json.dumps(value)
        case []:
            return "an empty list"
        case list():
            return "a list"
        case dict():
            return "an object"
        case str():
            return f"the text {_excerpt(value)}"
        case _:
            return f"the number {str(value)[:40]}"


def _keys(record: dict[str, Any]) -> str:
    shown = ", ".join(_excerpt(key) for key in sorted(record)[:8])
    return f"{shown}, ..." if len(record) > 8 else shown or "none"


def _excerpt(text: str) -> str:
    return f'"{printable(text, 40)}"'
