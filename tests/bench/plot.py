"""The ratios as a picture: one bar a figure, away from the line at 1, on a doubling scale.

Bars to the left are figures where we are ahead.  SVG written by hand, because
that is all a bar chart needs; it is readable on light and dark backgrounds.
Pure.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from tests.bench.report import number, ratio

if TYPE_CHECKING:
    from tests.bench.report import Report

ROW = 24  # pixels
LABEL = 330
SIDE = 180  # of the chart, left and right of the line at 1
NUMBERS = 220
TOP = 64
DOUBLINGS = 3  # the scale ends at an eighth and at eight times

AHEAD = "#2a9d6f"
BEHIND = "#d9822b"
GRAY = "#808080"
STYLE = "font-family:system-ui,sans-serif;font-size:13px"


def position(value: float) -> float:
    """Return how far from the line ``value`` is, in pixels; a value beyond the scale is at its
    end.

    >>> position(1.0), position(2.0), position(0.25), position(1000.0)
    (0.0, 60.0, -120.0, 180.0)
    """
    if value <= 0:
        return float(-SIDE)
    return max(-1.0, min(1.0, math.log2(value) / DOUBLINGS)) * SIDE


def svg(report: Report) -> str:
    """Draw ours against the first other shim; with no other there is nothing to draw but names."""
    other = report.others[0] if report.others else report.ours
    middle = LABEL + SIDE
    figures = [
        (figure, value)
        for figure in report.measured()
        if (value := report.samples.ratio(report.ours, other, figure.key)) is not None
    ]
    width, height = LABEL + 2 * SIDE + NUMBERS, TOP + ROW * len(figures) + 16
    head = f"{report.ours} / {other}: {report.date}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" style="{STYLE}">',
        text(12, 22, head, "start", size=15),
        text(middle - 8, 44, "ahead", "end", AHEAD),
        text(middle + 8, 44, "behind", "start", BEHIND),
    ]
    for doubling in range(-DOUBLINGS, DOUBLINGS + 1):
        x = middle + doubling * SIDE / DOUBLINGS
        parts.append(line(x, TOP - 8, x, height - 12, 1.5 if doubling == 0 else 0.3))
    for index, (figure, value) in enumerate(figures):
        y = TOP + ROW * index
        # More MiB/s is better: drawn as the time they take.
        cost = 1 / value if figure.more and value else value
        end = position(cost)
        color = AHEAD if cost <= 1 else BEHIND
        title = report.title(figure).replace("`", "")
        parts += [
            text(LABEL - 12, y + 13, title, "end"),
            f'<rect x="{middle + min(0, end):.1f}" y="{y + 2}" width="{max(abs(end), 1):.1f}" '
            f'height="{ROW - 9}" rx="2" fill="{color}"/>',
        ]
        if (wanted := figure.ratio_wanted(on_disk=report.on_disk)) is not None:
            goal = middle + position(1 / wanted if figure.more else wanted)
            parts.append(line(goal, y - 1, goal, y + ROW - 4, 2))
        pair = [number(report.samples.median(name, figure.key)) for name in (report.ours, other)]
        values = f"{ratio(value)}   ({' / '.join(pair)} {figure.unit})".replace(" )", ")")
        parts.append(text(middle + SIDE + 12, y + 13, values, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def text(x: float, y: float, words: str, anchor: str, color: str = GRAY, size: int = 13) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{color}">{escape(words)}</text>'
    )


def line(x1: float, y1: float, x2: float, y2: float, width: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{GRAY}" stroke-width="{width}"/>'
    )
