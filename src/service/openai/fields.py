"""The fields of a request's JSON object, each checked as it is read."""

import json
from collections.abc import Collection
from typing import Any

from src.service.openai.errors import ApiError, bad_request


class Fields:
    """A JSON object; a field that is null counts as missing. All raise ApiError for bad values."""

    def __init__(self, values: dict[str, Any], known: Collection[str], where: str = "") -> None:
        self._values, self._where = values, where
        unknown = sorted(set(values).difference(known))
        if unknown:
            name = where + unknown[0][:100]
            raise ApiError(
                400,
                f"Unrecognized request argument supplied: {name}",
                param=name,
                code="unknown_parameter",
            )

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def get(self, name: str) -> Any:
        """Return a field as it came."""
        return self._values.get(name)

    def refuse(self, name: str, expected: str) -> ApiError:
        """Return the error for a field, with what was found."""
        found = json.dumps(self._values.get(name), ensure_ascii=False)
        return bad_request(self._where + name, f"expected {expected}, found {found[:80]}")

    def text(self, name: str) -> str | None:
        """Return a text; None where there is none."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise self.refuse(name, "a text")
        if isinstance(value, str) and not _is_unicode(value):
            raise bad_request(self._where + name, "expected Unicode text without NUL characters")
        return value

    def required_text(self, name: str) -> str:
        """Return a text that must be there."""
        value = self.text(name)
        if not value:
            param = self._where + name
            message = f"you must provide a {param} parameter"
            raise ApiError(400, message, param=param, code="missing_required_parameter")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(name, "true or false")
        return value

    def number(self, name: str, lowest: float, highest: float, default: float) -> float:
        """Return a number within bounds."""
        value = self.get(name)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not lowest <= value <= highest:
            raise self.refuse(name, f"a number from {lowest:g} to {highest:g}")
        return float(value)

    def whole(self, name: str, lowest: int, highest: int, default: int) -> int:
        """Return a whole number within bounds."""
        value = self.get(name)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or value % 1 != 0 or not lowest <= value <= highest:
            raise self.refuse(name, f"a whole number from {lowest:,} to {highest:,}")
        return int(value)

    def object(self, name: str) -> dict[str, Any]:
        """Return a JSON object; an empty one where there is none."""
        value = self.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.refuse(name, "an object")
        return value


def _is_unicode(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
