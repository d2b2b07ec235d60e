"""The growth of several figures as a picture: a panel each, both axes logarithmic.

The dashed line through the last value is the proportional growth: a curve that is as steep
is linear, one that is flatter is better.  SVG, readable on light and dark backgrounds.
Pure.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from tests.bench.growth import Growth
from tests.bench.plot import AHEAD, BEHIND, GRAY, STYLE, line, text
from tests.bench.report import number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.bench.growth import Curve

COLUMNS = 3
WIDTH, HEIGHT = 300, 220  # pixels of a panel
LEFT, RIGHT, TOP, BOTTOM = 20, 60, 52, 30  # of its margins
HEAD = 40
LINE = 13  # pixels between two lines of text
COLORS = (AHEAD, BEHIND, GRAY)


def scaled(value: float, low: float, high: float, length: float) -> float:
    """Return the position of ``value`` on a logarithmic axis of ``length`` pixels.

    A value outside of the axis is at its end.

    >>> scaled(1, 1, 100, 50), scaled(10, 1, 100, 50), scaled(0, 1, 100, 50)
    (0.0, 25.0, 0.0)
    """
    inside = min(max(value, low), high)
    return math.log(inside / low) / math.log(high / low) * length


def svg(head: str, panels: Sequence[Mapping[str, Curve]]) -> str:
    """Draw ``panels``; each has the curve of the same figure for one or several shims."""
    rows = -(-len(panels) // COLUMNS)
    width, height = COLUMNS * WIDTH + 20, HEAD + rows * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" style="{STYLE}">',
        text(LEFT, 24, head, "start", size=15),
    ]
    for index, panel in enumerate(panels):
        row, column = divmod(index, COLUMNS)
        parts += _panel(panel, column * WIDTH, HEAD + row * HEIGHT)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(curves: Mapping[str, Curve], x: int, y: int) -> list[str]:
    numbers = [count for curve in curves.values() for count, _ in curve.points]
    first, last = min(numbers), max(numbers)
    values = [value for curve in curves.values() for _, value in curve.points]
    values += [_proportional(curve) for curve in curves.values()]
    low = min((value for value in values if value > 0), default=1.0)
    high = max(*values, low * 2)
    inner, depth = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(count: float, value: float) -> tuple[float, float]:
        across = scaled(count, first, max(last, first * 2), inner)
        return x + LEFT + across, y + TOP + depth - scaled(value, low, high, depth)

    any_curve = next(iter(curves.values()))
    title = f"{any_curve.title}, {any_curve.unit}"
    bottom = y + TOP + depth
    parts = [
        text(x + LEFT, y + 16, title, "start"),
        line(x + LEFT, bottom, x + LEFT + inner, bottom, 0.5),
    ]
    parts += [
        text(place(count, low)[0], bottom + 16, str(count), "middle", size=11)
        for count in sorted(set(numbers))
    ]
    for index, (name, curve) in enumerate(curves.items()):
        color = COLORS[index % len(COLORS)]
        verdict = f"{name}: {curve.growth() or 'one number'}"
        shown = BEHIND if curve.growth() is Growth.WORSE else color
        parts.append(text(x + LEFT + index * 130, y + 32, verdict, "start", shown, 11))
        parts += _curve(curve, place, color)
    heights = [place(*curve.points[-1])[1] + 4 for curve in curves.values()]
    for index, (curve, height) in enumerate(zip(curves.values(), spread(heights), strict=True)):
        across = place(*curve.points[-1])[0] + 8
        shown = number(curve.points[-1][1])
        parts.append(text(across, height, shown, "start", COLORS[index % len(COLORS)], 12))
    return parts


def spread(heights: Sequence[float]) -> list[float]:
    """Move lines of text at ``heights`` down so that none covers another.

    >>> spread([50, 10, 20])
    [50, 10, 23]
    """
    moved = list(heights)
    ordered = sorted(range(len(moved)), key=moved.__getitem__)
    for upper, lower in itertools.pairwise(ordered):
        moved[lower] = max(moved[lower], moved[upper] + LINE)
    return moved


def _proportional(curve: Curve) -> float:
    """Return the value at the first number from which growth in proportion ends at the last."""
    (first, _), (last, value) = curve.points[0], curve.points[-1]
    return value * first / last


def _curve(
    curve: Curve, place: Callable[[float, float], tuple[float, float]], color: str
) -> list[str]:
    ends = [place(*point) for point in curve.points]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in ends)
    begin = place(curve.points[0][0], _proportional(curve))
    return [
        f'<line x1="{begin[0]:.1f}" y1="{begin[1]:.1f}" x2="{ends[-1][0]:.1f}" '
        f'y2="{ends[-1][1]:.1f}" stroke="{GRAY}" stroke-width="1" stroke-dasharray="3 3"/>',
        f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>',
        *(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{color}"/>' for px, py in ends),
    ]
