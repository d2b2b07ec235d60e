"""The measurements as text: a Markdown table, also for the terminal.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.bench.figures import FIGURES
from tests.bench.samples import verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.bench.figures import Figure
    from tests.bench.samples import Samples

NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Report:
    """The measurements of one run.

    ``shims`` in the order of the columns: ours, which the ratios are of, comes first;
    the goals compare it with the second.  ``floor`` names the bare runtime, ``sizes``
    fills the titles, and ``on_disk`` tells where the bundles were.
    """

    shims: Sequence[str]
    floor: str
    samples: Samples
    sizes: Mapping[str, int]
    date: str
    machine: Sequence[str]
    on_disk: bool = False

    @property
    def ours(self) -> str:
        return self.shims[0]

    @property
    def others(self) -> Sequence[str]:
        return self.shims[1:]

    def title(self, figure: Figure) -> str:
        return figure.title.format(**self.sizes)

    def measured(self) -> list[Figure]:
        """Return the figures that any of the shims has a value of."""
        medians = self.samples.medians()
        return [f for f in FIGURES if any(f.key in medians.get(s, {}) for s in self.shims)]


def number(value: float | None) -> str:
    """Render three significant digits, and never an exponent.

    >>> number(0.0817), number(7.312), number(33.06), number(972.4), number(None)
    ('0.082', '7.31', '33.1', '972', '-')
    """
    if value is None:
        return NOTHING
    magnitude = abs(value)
    if value == int(value) and magnitude < 1000:
        return str(int(value))
    if magnitude >= 100:
        return f"{value:.0f}"
    if magnitude >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if magnitude >= 0.1 else f"{value:.3f}"


def ratio(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def goal(figure: Figure, *, on_disk: bool = False) -> str:
    if figure.limit is not None:
        return f"≤ {number(figure.limit)} {figure.unit}".rstrip()
    wanted = figure.ratio_wanted(on_disk=on_disk)
    if wanted is None:
        return ""
    return f"{'≥' if figure.more else '≤'} {wanted:.2f}"


def rows(report: Report) -> list[list[str]]:
    """Return the table's cells, the head first."""
    ratios = [f"{report.ours} / {other}" for other in report.others]
    table = [["", "unit", *report.shims, report.floor, *ratios, "goal", "reached"]]
    samples = report.samples
    for figure in report.measured():
        values = [samples.median(name, figure.key) for name in (*report.shims, report.floor)]
        found = [samples.ratio(report.ours, other, figure.key) for other in report.others]
        reached = verdict(figure, values[0], found[0] if found else None, on_disk=report.on_disk)
        table.append(
            [
                report.title(figure),
                figure.unit,
                *map(number, values),
                *map(ratio, found),
                goal(figure, on_disk=report.on_disk),
                {True: "yes", False: "**no**", None: ""}[reached],
            ]
        )
    return table


def markdown(report: Report) -> str:
    """Render the table, and above it the time, the machine and the programs."""
    head, *body = rows(report)
    align = ["---", "---", *["---:"] * (len(head) - 3), "---"]
    lines = [f"Medians of {report.date}.", *[f"{line}." for line in report.machine], ""]
    lines += ["| " + " | ".join(row) + " |" for row in (head, align, *body)]
    return "\n".join(lines) + "\n"


def plain(report: Report) -> str:
    """Render the same for a terminal: columns aligned."""
    table = rows(report)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join((*left, *right)).replace("**", "").rstrip())
    return "\n".join([*report.machine, "", *lines]) + "\n"
