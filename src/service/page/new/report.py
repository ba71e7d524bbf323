"""What a preview tells, as a part of the page."""

from typing import Any

from markupsafe import Markup

from src.service.page.answer import render
from src.training.results.report import draw_bars


def show_report(told: dict[str, Any]) -> Markup:
    """Return the HTML of the plan, of what is odd, of the lengths and of the first examples."""
    report, lines = told["report"], told["lines"]
    return render(
        "parts/report.html",
        plan=[line for line in lines if not line.startswith("warning: ")],
        warnings=[line for line in lines if line.startswith("warning: ")],
        lengths=Markup(draw_bars(report["length_edges"], report["length_counts"], height=160)),
        examples=[[_run(*run) for run in runs] for runs in report["examples"]],
    )


def _run(text: str, is_control: bool, is_target: bool) -> dict[str, str]:
    return {"text": text, "kind": " ".join(["learned"] * is_target + ["control"] * is_control)}
