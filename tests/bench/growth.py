"""How a figure grows with the number of shims.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_TOLERANCE = 1.25  # of a slope, and of a constant figure: measured times vary
_NOISE = 1.1  # of a single value


class Growth(StrEnum):
    """The verdict on a figure."""

    CONSTANT = "constant"
    LINEAR = "linear"
    WORSE = "worse than linear"


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure of all shims together, by their number: ``points`` are in ascending order."""

    title: str
    unit: str
    points: Sequence[tuple[int, float]]

    def growth(self) -> Growth | None:
        return growth(self.points)


def growth(points: Sequence[tuple[int, float]]) -> Growth | None:
    """Compare the last value with the line through the first and the one before the last.

    A figure is constant if the last value is at most a quarter higher than the first.
    It is linear if the last step costs for each shim at most a quarter more than the steps
    before.  A fixed cost, such as the start of a program, so hides no growth.  With two points
    the last value is compared with a proportional one.  One point has no growth.

    >>> growth([(10, 5.0), (100, 5.1), (1000, 5.5)])
    <Growth.CONSTANT: 'constant'>
    >>> growth([(10, 310.0), (100, 400.0), (1000, 1300.0)])
    <Growth.LINEAR: 'linear'>
    >>> growth([(10, 310.0), (100, 400.0), (1000, 2300.0)])
    <Growth.WORSE: 'worse than linear'>
    >>> growth([(10, 10.0), (20, 40.0)])
    <Growth.WORSE: 'worse than linear'>
    """
    if len(points) < 2:
        return None
    (first, low), (last, high) = points[0], points[-1]
    if high <= low * _TOLERANCE:
        return Growth.CONSTANT
    if len(points) == 2:
        most = low * last / first * _TOLERANCE
    else:
        before, value = points[-2]
        slope = max(0.0, (value - low) / (before - first))
        most = value * _NOISE + slope * _TOLERANCE * (last - before)
    return Growth.LINEAR if high <= most else Growth.WORSE
