"""Where a JSON value ends, in text that comes in pieces."""

import re

_NEXT = re.compile(r'["{}\[\]]|[^\w\s.+\-:,]')
"""What counts outside of strings: quotes, brackets, and characters that JSON has none of."""
_IN_STRING = re.compile(r'["\\]')


class JsonEnd:
    """Follows brackets and strings; a character that can be no JSON ends a value too."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._is_string = self._is_escaped = False

    def find(self, piece: str) -> int | None:
        """Return how many characters of the next piece belong to the value; None while all do.

        The value begins with a bracket or a quote, or `depth` brackets are open.
        """
        place = 0
        while place < len(piece):
            if self._is_escaped:
                self._is_escaped = False
                place += 1
                continue
            found = (_IN_STRING if self._is_string else _NEXT).search(piece, place)
            if found is None:
                return None
            character, place = found[0], found.end()
            if character == "\\":
                if not self._is_string:
                    return place - 1
                self._is_escaped = True
            elif character == '"':
                self._is_string = not self._is_string
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
            else:
                return place - 1
            if self._depth <= 0 and not self._is_string:
                return place
        return None
