"""Text that can be written as Unicode, which is the only text that a tokenizer takes."""

from src.errors import UserError


def check_unicode(where: str, text: str) -> None:
    """Raise UserError for text that holds half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: expected Unicode text, found half of a surrogate pair") from None
