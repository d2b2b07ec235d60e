"""A failing test that drives a real manager or the stock shim is run again, and it is named.

containerd, dockerd, the kubelet's plugin and Go's shim have races of their own.  Everything
else is ours: a test of it that fails once has found a fault.  But workers that share
processors make some fail that are right, so each worker repeats one test of the rings in
``BUSY``; a second one fails.  ``--repeat-managers`` gives these tests one repetition; what
fails then is printed at once and again at the end of the run, with the reason of the first
failure.
Each such reason is a fault to look for.

The worker of a parallel run repeats its tests itself, without a connection to another
process.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol

from tests.parallel import MANAGERS, ring_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

OPTION = "--repeat-managers"
RINGS = frozenset({"e2e", "docker", "cri"})
# The rings whose tests start many processes, and how many of their tests a worker repeats.
BUSY = frozenset({"process", "shimctl", "stdio", "minid", "examples"})
MOST = 1
_AGAIN, _BUSY = pytest.StashKey[bool](), pytest.StashKey[bool]()
_repeated = pytest.StashKey[int]()  # tests of busy rings that this worker has repeated
RERUN = "rerun"  # the outcome of a failed phase of a test that is run again
_REASON = 300  # characters
_ERROR = re.compile(r"[\w.]+(Error|Exception|Interrupt): ")  # the last line of a traceback


def drives_a_manager(path: Path, fixtures: Iterable[str]) -> bool:
    """Return whether the test in ``path`` that takes these fixtures drives a real manager."""
    return ring_of(path) in RINGS or not set(MANAGERS).isdisjoint(fixtures)


def drives_the_stock_shim(item: pytest.Item) -> bool:
    """Return whether the test is the case "go" of one with several shims."""
    call = getattr(item, "callspec", None)
    return call is not None and "go" in call.id.split("-")


def reason_of(text: str) -> str:
    """Return the line of a failure's ``text`` with the reason: pytest's first one with an E.

    If that is the head of a traceback that a program printed, it is the error of that.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line[1:].strip(" |+-") for line in lines if line.startswith("E ")]
    if errors and errors[0].endswith("Traceback (most recent call last):"):
        errors = [error for error in errors[1:] if _ERROR.match(error)] or errors
    # An exception group ends with a frame of lines; the innermost error is the last word.
    plain = [line.strip("|+- ") for line in lines if line.strip("|+-=_ ")]
    return (errors[:1] or plain[-1:] or ["no reason is given"])[0][:_REASON]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        OPTION,
        action="store_true",
        help="run a failing test of a real manager once more, and name it",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption(OPTION):
        return
    for item in items:
        fixtures: list[str] = getattr(item, "fixturenames", [])
        item.stash[_AGAIN] = drives_a_manager(item.path, fixtures) or drives_the_stock_shim(item)
        item.stash[_BUSY] = ring_of(item.path) in BUSY


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    used = item.config.stash.get(_repeated, 0)
    again = item.stash.get(_AGAIN, False)
    if not again and not (item.stash.get(_BUSY, False) and used < MOST):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    if any(report.failed for report in reports):
        item.config.stash[_repeated] = used if again else used + 1
        for report in reports:
            if report.failed:
                report.outcome = RERUN  # type: ignore[assignment]
                item.ihook.pytest_runtest_logreport(report=report)
        _forget_failed_fixtures(item)
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _forget_failed_fixtures(item: pytest.Item) -> None:
    """Let the fixtures that failed be set up again: pytest caches an error, too."""
    item._initrequest()  # type: ignore[attr-defined]  # what pytest does for a repetition
    for name in getattr(item, "fixturenames", []):
        for fixture in item.session._fixturemanager.getfixturedefs(name, item) or ():
            if fixture.cached_result is not None and fixture.cached_result[2] is not None:
                fixture.finish(item._request)  # type: ignore[attr-defined]


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    return (RERUN, "R", "RERUN") if report.outcome == RERUN else None


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the workers' reports come to the first process
        config.pluginmanager.register(_Repeats(config), "repeats-report")


class _Repeats:
    """Prints the repeated tests."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._repeated: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != RERUN:
            return
        self._repeated.append((report.nodeid, reason_of(report.longreprtext)))
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            terminal.ensure_newline()
            terminal.write_line("repeated: {}: {}".format(*self._repeated[-1]))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._repeated:
            terminalreporter.section("repeated tests")
        for name, reason in self._repeated:
            terminalreporter.write_line(f"{name}\n    {reason}")
