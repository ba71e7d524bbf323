"""The values of a JSON object, checked, and how a sentence shows them."""

import json
from typing import Any

from src.files.printable import printable

Record = dict[str, Any]


class BadValueError(Exception):
    """What is wrong with a value, and what is expected."""


class BadFormError(BadValueError):
    """A row of another form; often many rows of a file are, and one sentence tells all."""

    def __init__(self, sentence: str, *, group: str = "") -> None:
        super().__init__(sentence)
        self.group = group or sentence
        """What lines of the same fault have in common."""


def read_text(record: Record, key: str, where: str = "", *, may_be_empty: bool = True) -> str:
    """Return the text that stands under a key; raises BadValueError for anything else."""
    value = record.get(key)
    if isinstance(value, str) and (value or may_be_empty):
        try:
            value.encode()
            return value
        except UnicodeEncodeError:
            pass
    label = f'"{where}{key}"'
    if key not in record:
        raise BadValueError(f"expected the key {label}, found only {show_keys(record)}")
    if isinstance(value, int | float | list | dict) and not where:
        raise BadFormError(
            f"{label}: expected text, found {describe(value)}; make it text with: "
            f"jq -c '.{key} |= tostring' OLD > NEW.jsonl",
            group=label,
        )
    if not isinstance(value, str):
        raise BadValueError(f"{label}: expected text, found {describe(value)}")
    check_unicode(value, label)
    raise BadValueError(f"{label}: expected text, found an empty string")


def check_unicode(text: str, label: str) -> None:
    """Raise BadValueError for text that holds half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadValueError(
            f"{label}: expected Unicode text, found half of a surrogate pair "
            f"(\\u{ord(text[error.start]):04x})"
        ) from None


def describe(value: object) -> str:
    """Return what a JSON value is, in a few words."""
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
            return f"the text {excerpt(value)}"
        case _:
            return f"the number {str(value)[:40]}"


def show_keys(record: Record) -> str:
    """Return the keys of an object for a sentence."""
    shown = ", ".join(excerpt(key) for key in sorted(record)[:8])
    return f"{shown}, ..." if len(record) > 8 else shown or "none"


def excerpt(text: str) -> str:
    """Return the beginning of a text in quotes."""
    return f'"{printable(text, 40)}"'
