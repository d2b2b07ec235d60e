"""How a figure grows with the number of shims.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONSTANT = 1.25  # of the first value; measured times vary
_STEEPER = 1.5  # of a slope
_NOISE = 1.1  # of a single value
_FLAT = 0.25  # an exponent: a hundredfold number costs at most 3.2 times as much


class Growth(StrEnum):
    """The verdict on a figure."""

    CONSTANT = "constant"
    LESS = "less than linear"
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

    A figure is constant if the last value is at most a quarter higher than the first, and
    less than linear if a hundredfold number makes it at most 3.2 times as high.  It is
    linear if the last step costs for each shim at most 1.5 times as much as the steps
    before.  A fixed cost, such as the start of a program, so hides no growth.  With two points
    the last value is compared with a proportional one.  One point has no growth.

    >>> growth([(10, 5.0), (100, 5.1), (1000, 5.5)])
    <Growth.CONSTANT: 'constant'>
    >>> growth([(10, 6.4), (100, 7.7), (1000, 10.1)])
    <Growth.LESS: 'less than linear'>
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
    if high <= low * _CONSTANT:
        return Growth.CONSTANT
    if high <= low * (last / first) ** _FLAT:
        return Growth.LESS
    if len(points) == 2:
        most = low * last / first * _STEEPER
    else:
        before, value = points[-2]
        slope = max(0.0, (value - low) / (before - first))
        most = value * _NOISE + slope * _STEEPER * (last - before)
    return Growth.LINEAR if high <= most else Growth.WORSE
