"""A switch of the environment: on, off, or left alone."""

from collections.abc import Mapping

from src.errors import UserError


def read_flag(name: str, environ: Mapping[str, str]) -> bool | None:
    """Return whether a switch is on; None where it is left alone.

    Raises UserError for anything but 0 and 1: a switch that is overlooked is worse than an error.
    """
    asked = environ.get(name, "").strip()
    if asked not in ("", "0", "1"):
        raise UserError(f"{name}: expected 0 or 1, found {asked!r}")
    return asked == "1" if asked else None
