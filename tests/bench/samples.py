"""Measured values and their statistics: medians, ratios, spreads.  Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from tests.bench.figures import Figure


@dataclass(slots=True)
class Samples:
    """Every value measured, by shim and figure."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, shim: str, turn: Mapping[str, float]) -> None:
        """Add one turn's figures."""
        for key, value in turn.items():
            self.values.setdefault(shim, {}).setdefault(key, []).append(value)

    def keep(self, keys: Collection[str]) -> None:
        """Forget the figures not in ``keys``, which came with others."""
        for figures in self.values.values():
            for key in figures.keys() - keys:
                del figures[key]

    def median(self, shim: str, key: str) -> float | None:
        """Return the middle value, or None without values."""
        values = self.values.get(shim, {}).get(key)
        return statistics.median(values) if values else None

    def ratio(self, ours: str, other: str, key: str) -> float | None:
        """Return ours to other's; None if one is missing or other's is zero."""
        return ratio_of(self.median(ours, key), self.median(other, key))

    def medians(self) -> dict[str, dict[str, float]]:
        return {
            shim: {key: statistics.median(values) for key, values in figures.items() if values}
            for shim, figures in self.values.items()
        }


def ratio_of(ours: float | None, other: float | None) -> float | None:
    if ours is None or not other:
        return None
    return ours / other


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the value that ``percent`` % of ``values``, at least one, do not exceed."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)  # rounded up
    return ordered[max(0, int(rank) - 1)]


def verdict(
    figure: Figure, value: float | None, ratio: float | None, *, on_disk: bool = False
) -> bool | None:
    """Return whether ``figure`` reaches its goal; None without a measurement."""
    if figure.limit is not None:
        return None if value is None else value <= figure.limit
    wanted = figure.ratio_wanted(on_disk=on_disk)
    if wanted is None or ratio is None:
        return None
    return ratio >= wanted if figure.more else ratio <= wanted
