"""Whether a large line is text for the most part: all else takes up to fifty times its size."""

import re

LARGE_LINE_BYTES = 2**20
MAX_OTHER_BYTES = 2**19
"""Of a large line, what is no text: brackets, numbers and commas."""

# Strings that touch are one match, the last may lack its end, and nothing is tried twice.
_STRINGS = re.compile(rb'(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"?+)++')


def is_mostly_text(line: bytes) -> bool:
    """Tell whether a line of JSON is small, or has few bytes outside of its strings."""
    if len(line) <= LARGE_LINE_BYTES:
        return True
    num_other = end = 0
    for strings in _STRINGS.finditer(line):
        num_other += strings.start() - end
        end = strings.end()
        if num_other > MAX_OTHER_BYTES:
            return False
    return num_other + len(line) - end <= MAX_OTHER_BYTES
