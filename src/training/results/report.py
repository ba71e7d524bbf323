"""One self-contained page that shows how a training went."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.data.marked import Run
from src.data.report import DataReport

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 860, 340, 56, 36, 16

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;
max-width:900px;margin:2rem auto;padding:0 1rem;color:#1c2430}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}
td,th{padding:.25rem .6rem;border-bottom:1px solid #dde2ea;
text-align:left;vertical-align:top}td:first-child{color:#566;white-space:nowrap}
.learned{background:#3a9a6b33}.control{color:#b4508f}
pre{white-space:pre-wrap;background:#f5f7fa;padding:.6rem;margin:0}
svg text{font:12px system-ui,sans-serif;fill:#566}
@media (prefers-color-scheme:dark){body{background:#12161c;color:#dfe5ee}pre{background:#1b212b}
td,th{border-color:#2a3340}td:first-child,svg text{color:#9ab;fill:#9ab}}
"""

_MARKS = (
    '<p><span class="learned">Learned text</span> and '
    '<span class="control">control tokens</span> are marked.</p>'
)


def write_report(
    path: Path, manifest: Mapping[str, Any], metrics_path: Path, data: DataReport
) -> None:
    """Write the page from the manifest, the metrics and the data of a run."""
    records = [json.loads(line) for line in metrics_path.read_text().splitlines()]
    train = [(r["step"], r["loss"]) for r in records if "loss" in r]
    validation = [(r["step"], r["eval_loss"]) for r in records if "eval_loss" in r]
    rates = [(r["step"], r["learning_rate"]) for r in records if "learning_rate" in r]
    samples = [(r["step"], r["sample"]) for r in records if "sample" in r]
    sections = [
        f"<h1>Fine-tuning of {html.escape(str(manifest['base_model']))}</h1>",
        "<h2>Loss</h2>",
        draw_curves([("training", "#3b6fd4", train), ("validation", "#d9622b", validation)]),
        "<h2>Learning rate</h2>",
        draw_curves([("learning rate", "#3a9a6b", rates)], height=180),
    ]
    if samples:
        rows = "".join(
            f"<tr><td>step {step}</td><td><pre>{html.escape(text)}</pre></td></tr>"
            for step, text in samples
        )
        prompt = html.escape(str(manifest["settings"].get("validation_prompt")))
        sections += ["<h2>Validation samples</h2>", f"<p>Prompt: {prompt}</p><table>{rows}</table>"]
    sections += ["<h2>Data</h2>", _table({**manifest["data"], **_repetitions(data)})]
    sections += ["<h2>Tokens of an example</h2>", draw_bars(data.length_edges, data.length_counts)]
    sections += ["<h2>Examples as the model reads them</h2>", _MARKS, *map(_example, data.examples)]
    for title, key in (("Settings", "settings"), ("Versions", "versions")):
        sections += [f"<h2>{title}</h2>", _table(manifest[key])]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Training report</title><style>{_STYLE}</style></head><body>"
        f"{''.join(sections)}</body></html>"
    )
    path.write_text(page)


def draw_curves(
    curves: Sequence[tuple[str, str, Sequence[tuple[float, float]]]], *, height: int = HEIGHT
) -> str:
    """Return an SVG of named curves of (step, value) on common axes from zero."""
    points = [point for *_, curve in curves for point in curve]
    if not points:
        return "<p>None.</p>"
    last_step = max(step for step, _ in points) or 1
    highest = max(value for _, value in points) or 1.0

    def place(step: float, value: float) -> str:
        x = LEFT + step / last_step * (WIDTH - LEFT - 12)
        y = height - BOTTOM - value / highest * (height - BOTTOM - TOP)
        return f"{x:.1f},{y:.1f}"

    parts = []
    for number in range(5):
        value = highest * number / 4
        x, y = place(0, value).split(",")
        parts.append(
            f'<line x1="{x}" x2="{WIDTH - 12}" y1="{y}" y2="{y}" stroke="#8886" stroke-width=".5"/>'
            f'<text x="{LEFT - 6}" y="{y}" text-anchor="end" dy=".3em">{value:.3g}</text>'
        )
        step = round(last_step * number / 4)
        x = place(step, 0).split(",")[0]
        parts.append(f'<text x="{x}" y="{height - 16}" text-anchor="middle">{step}</text>')
    for number, (name, color, curve) in enumerate(curves):
        line = " ".join(place(*point) for point in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        if len(curve) <= 20:
            dots = (place(*point).split(",") for point in curve)
            parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in dots]
        x = WIDTH - 120
        parts.append(
            f'<rect x="{x}" y="{TOP + 18 * number}" width="12" height="4" fill="{color}"/>'
            f'<text x="{x + 18}" y="{TOP + 18 * number + 6}">{name}</text>'
        )
    return _svg(height, [*parts, _axis_title("step", height)])


def _axis_title(title: str, height: int) -> str:
    return f'<text x="{WIDTH / 2}" y="{height - 2}" text-anchor="middle">{title}</text>'


def _svg(height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" xmlns="http://www.w3.org/2000/svg" role="img">'
        f"{''.join(parts)}</svg>"
    )


def draw_bars(edges: Sequence[int], counts: Sequence[int], *, height: int = 180) -> str:
    """Return an SVG histogram: `counts[i]` values from `edges[i]` up to `edges[i + 1]`."""
    room, width = height - BOTTOM - TOP, (WIDTH - LEFT - 12) / len(counts)
    highest = max(counts)
    parts = [f'<text x="{LEFT - 6}" y="{TOP}" text-anchor="end" dy=".3em">{highest:,}</text>']
    for number, (edge, count) in enumerate(zip(edges, counts, strict=False)):
        x, size = LEFT + number * width, count / highest * room
        parts.append(
            f'<rect x="{x:.1f}" y="{TOP + room - size:.1f}" width="{width - 1:.1f}" '
            f'height="{size:.1f}" fill="#3b6fd4"><title>{edge:,} to {edges[number + 1] - 1:,} '
            f"tokens: {count:,}</title></rect>"
        )
        if number % 6 == 0:
            parts.append(f'<text x="{x:.1f}" y="{height - 16}">{edge:,}</text>')
    return _svg(height, [*parts, _axis_title("tokens", height)])


def _repetitions(data: DataReport) -> dict[str, Any]:
    return {
        "exact duplicates": data.duplicates,
        "validation examples in the training data": data.in_both,
        "most frequent answer": f"{data.frequent_answer} ({data.frequent_answers:,} times)",
    }


def _example(runs: Sequence[Run]) -> str:
    def show(run: Run) -> str:
        kind = "learned " * run.is_target + "control" * run.is_control
        text = html.escape(run.text)
        return f'<span class="{kind}">{text}</span>' if kind else text

    return f"<p></p><pre>{''.join(map(show, runs))}</pre>"


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(_show(value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<table>{rows}</table>"


def _show(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_show(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
