"""A finding of one check of ``shimctl doctor``, and the report of all findings.

Pure values.  The order of :class:`Level` is that of the exit code.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    NOTE = "note"  # a fact that explains a behaviour; nothing has to be done
    ADVICE = "advice"  # works, but should be changed
    BROKEN = "broken"  # does not work


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about this host.

    ``area`` groups findings, ``subject`` names the program, the path or the container.
    ``remedy`` is what to do, empty if nothing is to be done.  ``detail`` may have
    several lines, such as a stack.
    """

    area: str
    subject: str
    level: Level
    text: str
    remedy: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The findings of all checks, in the order of the checks."""

    version: str
    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        """The most serious level of the findings."""
        levels = list(Level)
        return max((f.level for f in self.findings), key=levels.index, default=Level.OK)

    @property
    def exit_code(self) -> int:
        """0 if there is nothing to do, 1 for advice, 2 if something is broken."""
        return {Level.ADVICE: 1, Level.BROKEN: 2}.get(self.level, 0)
