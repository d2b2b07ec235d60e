"""Which scenario passed under which manager: one Markdown table at the end of a run.

A fixture that provides a manager calls :func:`record_manager`; this module does the rest.  A
row is a module, named by its ``SCENARIO`` or by the first line of its
docstring; modules of one name share a row.  A column is a manager, as it was named.
Rings that were not run are not in the table, so a table to show comes of a whole run.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TABLE = Path(__file__).parent.parent / ".cache/matrix.md"
_MANAGER, _SCENARIO, _REASON = "manager", "scenario", "not applicable"
_PASSED, _FAILED, _NOTHING = "passed", "failed", "n/a"


def record_manager(request: pytest.FixtureRequest, name: str) -> None:
    """Put the test that asks into the column ``name``, such as "dockerd 28.5.2".

    Call it in a fixture of the test's own scope, first thing: a test that fails in its setup
    after that has failed under that manager.
    """
    properties = request.node.user_properties
    properties.append((_MANAGER, name))
    properties.append((_SCENARIO, _title(request.node)))


def record_not_applicable(request: pytest.FixtureRequest, reason: str) -> None:
    """Record that this manager does not have the tested feature; then return."""
    request.node.user_properties.append((_REASON, reason))


@dataclass
class Matrix:
    """The outcomes so far: by scenario, manager and test."""

    outcomes: dict[str, dict[str, dict[str, str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )
    reasons: set[str] = field(default_factory=set)

    def add(self, report: pytest.TestReport) -> None:
        said = dict(report.user_properties)
        if _MANAGER not in said:
            return
        manager, scenario = str(said[_MANAGER]), str(said[_SCENARIO])
        tests = self.outcomes[scenario][manager]
        if report.failed:
            tests[report.nodeid] = _FAILED
        elif report.skipped:
            tests[report.nodeid] = _NOTHING
            if isinstance(report.longrepr, tuple):
                self.reasons.add(f"{manager}: {report.longrepr[2].removeprefix('Skipped: ')}")
        elif _REASON in said and tests.get(report.nodeid) != _FAILED:
            tests[report.nodeid] = _NOTHING
            self.reasons.add(f"{manager}: {said[_REASON]}")
        else:
            tests.setdefault(report.nodeid, _PASSED)

    def table(self) -> str:
        managers = {manager for columns in self.outcomes.values() for manager in columns}
        columns = sorted(managers, key=_natural)
        lines = [
            "| " + " | ".join(["scenarios", *columns]) + " |",
            "|---" * (len(columns) + 1) + "|",
        ]
        total: dict[str, Counter[str]] = defaultdict(Counter)
        for scenario, tests in self.outcomes.items():
            cells = []
            for manager in columns:
                counts = Counter(tests[manager].values()) if manager in tests else Counter()
                total[manager] += counts
                cells.append(_cell(counts))
            lines.append("| " + " | ".join([scenario, *cells]) + " |")
        cells = [_cell(total[manager]) for manager in columns]
        lines.append("| " + " | ".join(["**all**", *cells]) + " |")
        notes = [f"\n{_NOTHING}: {reason}" for reason in sorted(self.reasons)]
        return "\n".join([*lines, *notes, ""])


class Plugin:
    def __init__(self) -> None:
        self._matrix = Matrix()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._matrix.add(report)

    def pytest_sessionfinish(self) -> None:
        if self._matrix.outcomes:
            TABLE.parent.mkdir(exist_ok=True)
            TABLE.write_text(self._matrix.table())

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._matrix.outcomes:
            terminalreporter.write_line(f"scenarios by manager: {TABLE}")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # a worker's reports reach the run that started it
        config.pluginmanager.register(Plugin(), "matrix")


def _title(item: pytest.Item) -> str:
    module = item.getparent(pytest.Module)
    assert module is not None, "a test without a module has no scenario"
    named = getattr(module.obj, "SCENARIO", None)
    doc = inspect.getdoc(module.obj) or item.path.stem
    return str(named or doc.splitlines()[0].rstrip("."))


def _cell(counts: Counter[str]) -> str:
    said = [f"{counts[kind]} {kind}" for kind in (_PASSED, _FAILED, _NOTHING) if counts[kind]]
    return ", ".join(said) or "-"


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort 9 before 10, after any text."""
    return [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", name)
    ]
