"""What may be shown of a stranger's text."""


def printable(text: object, limit: int = 100) -> str:
    """Return the text without control characters, cut to a length that fits in a sentence."""
    shown = "".join(c if c.isprintable() else "?" for c in str(text)[: limit + 1])
    return shown if len(shown) <= limit else shown[:limit] + "..."
