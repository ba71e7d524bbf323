"""Where a run's webhooks go, and which events they are told."""

from typing import Any

from src.errors import UserError
from src.service.http.body import text_field
from src.service.http.problem import invalid
from src.weights.download.url import check_url

EVENTS = ("start", "output", "logs", "completed")


def read_webhook(body: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a run; raises Problem for what cannot be meant."""
    url = text_field(body, "webhook")
    events = body.get("webhook_events_filter")
    if events is not None and not (
        isinstance(events, list) and all(event in EVENTS for event in events)
    ):
        raise invalid("webhook_events_filter", f"expected a list of {', '.join(EVENTS)}", "enum")
    if not url and (url := text_field(body, "webhook_completed")):
        events = ["completed"]
    if not url:
        return {}
    try:
        check_url(url)
    except UserError as error:
        raise invalid("webhook", str(error)) from None
    return {"webhook": url, "webhook_events": sorted(set(events)) if events else None}
