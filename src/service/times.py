"""Times as the API writes them: RFC 3339 in UTC, which also sort as text."""

from datetime import UTC, datetime, timedelta


def now_text(*, plus_seconds: float = 0.0) -> str:
    """Return this moment, or one that many seconds later."""
    return _text(datetime.now(UTC) + timedelta(seconds=plus_seconds))


def later(text: str, seconds: float) -> str:
    """Return the moment that many seconds after one."""
    return _text(parse_time(text) + timedelta(seconds=seconds))


def parse_time(text: str) -> datetime:
    """Return the moment that a text names."""
    return datetime.fromisoformat(text)


def unix_time(text: str) -> int:
    """Return the whole seconds since 1970 of such a text."""
    return int(parse_time(text).timestamp())


def seconds_between(start: str, end: str) -> float:
    """Return the seconds from one such text to another."""
    return (parse_time(end) - parse_time(start)).total_seconds()


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
