"""The loss of a training as pictures."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from src.training.results.report import draw_curves

MOST_POINTS = 400
WIDTH, HEIGHT, MARGIN = 120, 28, 2
Curve = list[tuple[float, float]]


def draw_losses(records: Sequence[dict[str, Any]]) -> Markup:
    """Return the curves of the training and the validation loss."""
    train, validation = curve_of(records, "loss"), curve_of(records, "eval_loss")
    curves = [("training", "#3b82f6", train), ("validation", "#e07b39", validation)]
    return Markup(draw_curves(curves, height=260)) if train or validation else Markup()


def draw_sparkline(records: Sequence[dict[str, Any]]) -> Markup:
    """Return a small picture of the training loss."""
    curve = curve_of(records, "loss")
    if len(curve) < 2:
        return Markup()
    (first, begin), (last, end) = curve[0], curve[-1]
    highest = max(loss for _, loss in curve) or 1.0
    points = " ".join(
        f"{MARGIN + (step - first) / (last - first or 1) * (WIDTH - 2 * MARGIN):.1f},"
        f"{HEIGHT - MARGIN - loss / highest * (HEIGHT - 2 * MARGIN):.1f}"
        for step, loss in curve
    )
    return Markup(
        f'<svg class="sparkline" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="loss from {begin:.3g} to {end:.3g}">'
        f'<polyline points="{points}" fill="none" stroke="#3b82f6" stroke-width="2"/></svg>'
    )


def curve_of(records: Sequence[dict[str, Any]], name: str) -> Curve:
    """Return (step, value) of a number that is reported, at most `MOST_POINTS` of them."""
    curve = [(record["step"], record[name]) for record in records if name in record]
    stride = -(-len(curve) // MOST_POINTS) or 1
    # Counted from the last one, which is always shown.
    return curve[::-1][::stride][::-1]
