"""A switch of the environment: on, off, or left alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from src.errors import UserError


def read_flag(name: str, environ: Mapping[str, str]) -> bool | None:
    """Return whether a switch is on; None where it is left alone.

    Raises UserError for anything but 0 and 1: a switch that is overlooked is worse than an error.
    """
    asked = environ.get(name, "").strip()
    if asked not in ("", "0", "1"):
        raise UserError(f"{name}: expected 0 or 1, found {asked!r}")
    return asked == "1" if asked else None


@dataclass(frozen=True, kw_only=True)
class ServeEnvironment:
    """The variables of a server that answers prompts."""

    in_4bit: bool
    """`BASE_MODEL_IN_4BIT`: hold the base model in 4-bit."""
    can_speculate: bool | None
    """`LOOK_AHEAD`: verify several speculated tokens in one step; None where it pays."""
    weights_cache: Path
    """`WEIGHTS_CACHE`: where unpacked fine-tuned weights are kept."""
    weights_dir: Path | None
    """`WEIGHTS_DIR`: the folder below which requests may name weights by path."""


def read_serve_environment(environ: Mapping[str, str]) -> ServeEnvironment:
    """Return what the environment asks of a server.

    Raises UserError that names the variable that cannot be meant.
    """
    weights_cache = environ.get("WEIGHTS_CACHE") or "~/.cache/cog-finetune-weights"
    weights_dir = environ.get("WEIGHTS_DIR")
    return ServeEnvironment(
        in_4bit=read_flag("BASE_MODEL_IN_4BIT", environ) or False,
        can_speculate=read_flag("LOOK_AHEAD", environ),
        weights_cache=Path(weights_cache).expanduser(),
        weights_dir=Path(weights_dir) if weights_dir else None,
    )
