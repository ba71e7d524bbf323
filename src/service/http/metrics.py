"""What Prometheus reads of the service and its engine."""

from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from src.service.service import Service

PREFIX = "cog_finetune"
_OF_ENGINE = {
    "tokens_per_second": ("gauge", "Tokens that the engine generates each second"),
    "output_token_count": ("counter", "Tokens that the engine has generated"),
    "input_token_count": ("counter", "Tokens of prompts that the engine has read"),
    "cached_input_token_count": ("counter", "Tokens of prompts that it had read before"),
    "answers_running": ("gauge", "Answers that the engine generates"),
    "answers_waiting": ("gauge", "Answers that wait in the engine"),
    "preemption_count": ("counter", "Times an answer was read again: full cache, or long text"),
    "requests_served": ("counter", "Requests that the engine has answered"),
    "requests_failed": ("counter", "Requests that it has refused or that failed"),
    "memory_bytes": ("gauge", "Memory of the engine's process"),
    "device_memory_bytes": ("gauge", "Memory of its device that is in use"),
}
_CACHES = ("adapters_on_disk", "adapters_in_memory", "adapters_on_device")


async def metrics(request: Request) -> Response:
    """GET /metrics, in Prometheus' text format."""
    service: Service = request.app.state.service
    await service.engines.ask_reports()
    return PlainTextResponse("".join(_lines(service)), media_type="text/plain; version=0.0.4")


def _lines(service: Service) -> Iterator[str]:
    predictions, trainings = service.predictions, service.trainings
    yield from _metric(
        "engine_ready",
        "gauge",
        "Whether an engine takes requests",
        {"": int(service.engines.is_ready)},
    )
    counts = {
        'kind="prediction"': predictions.num_waiting, 'kind="training"': trainings.num_waiting
    }  # fmt: skip
    yield from _metric("queued", "gauge", "Runs that wait", counts)
    counts = {
        'kind="prediction"': predictions.num_running, 'kind="training"': trainings.num_running
    }  # fmt: skip
    yield from _metric("running", "gauge", "Runs at work", counts)
    ended = {
        f'kind="{kind}",status="{status}"': number
        for (kind, status), number in sorted(service.ends.counts.items())
    }
    yield from _metric("ended_total", "counter", "Runs that have ended, by how", ended)
    reports = service.engines.reports
    for name, (kind, text) in _OF_ENGINE.items():
        of_each = {
            f'engine="{number}"': report[name]
            for number, report in enumerate(reports)
            if name in report
        }
        yield from _metric(f"engine_{name}{_suffix(kind)}", kind, text, of_each)
    for part in ("entries", "bytes", "hits", "misses"):
        uses = {
            f'engine="{number}",cache="{name}"': report[name][part]
            for number, report in enumerate(reports)
            for name in _CACHES
            if name in report
        }
        kind = "gauge" if part in ("entries", "bytes") else "counter"
        name = f"adapter_cache_{part}{_suffix(kind)}"
        yield from _metric(name, kind, f"Adapters: {part}", uses)


def _suffix(kind: str) -> str:
    return "_total" if kind == "counter" else ""


def _metric(name: str, kind: str, text: str, values: dict[str, Any]) -> Iterator[str]:
    if values:
        yield f"# HELP {PREFIX}_{name} {text}\n# TYPE {PREFIX}_{name} {kind}\n"
    for labels, value in values.items():
        yield f"{PREFIX}_{name}{'{' + labels + '}' if labels else ''} {value}\n"
