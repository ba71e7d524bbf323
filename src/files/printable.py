"""What may be shown in a sentence: a stranger's text, a number of bytes."""


def printable(text: object, limit: int = 100) -> str:
    """Return the text without control characters, cut to a length that fits in a sentence."""
    shown = "".join(c if c.isprintable() else "?" for c in str(text)[: limit + 1])
    return shown if len(shown) <= limit else shown[:limit] + "..."


def show_bytes(size: float) -> str:
    """Return a number of bytes in megabytes or gigabytes."""
    if size >= 1e9:
        return f"{size / 1e9:,.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
