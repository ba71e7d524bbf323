"""What the benchmarks' reports share: the machine's name and a picture of bars."""

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path


def machine_name(threads: str = "one thread") -> str:
    """Return the processor and what is used of it."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    name = found[1] if found else platform.machine()
    return f"{os.cpu_count()} CPU cores, {name}, {threads}"


def draw_bars(bars: Mapping[str, float], title: str) -> str:
    """Return an SVG of named bars."""
    highest = max(bars.values())
    label = max(220, 7 * max(map(len, bars)))
    parts = [f'<text x="0" y="16" font-weight="bold">{title}</text>']
    for number, (name, value) in enumerate(bars.items()):
        y, width = 32 + 30 * number, 460 * value / highest
        color = "#3b6fd4" if name.startswith("cog-finetune") else "#9aa7b8"
        parts.append(
            f'<text x="{label}" y="{y + 14}" text-anchor="end">{name}</text>'
            f'<rect x="{label + 8}" y="{y}" width="{width:.0f}" height="20" fill="{color}"/>'
            f'<text x="{label + 14 + width:.0f}" y="{y + 14}">{value:,.0f}</text>'
        )
    height = 40 + 30 * len(bars)
    return (
        f'<svg viewBox="0 0 {label + 540} {height}" xmlns="http://www.w3.org/2000/svg" '
        f'font-family="sans-serif" font-size="12" fill="#777">{"".join(parts)}</svg>\n'
    )
