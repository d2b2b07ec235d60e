"""How the tests of a run share its workers, and how long each ring took.

A run of the whole suite has several workers (``tests/run.sh``), each in namespaces of
its own (``tests/worker``).  The tests of one module stay together, as they share
fixtures.  The tests of one real manager stay together across modules, so that each
manager is started once.  Tests whose containers have fixed ids in a place that workers
share stay together, too.

A ring is a directory below ``tests``; files directly in ``tests`` form the ring "shim".
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

_TESTS = Path(__file__).parent
# The session fixtures that start a real manager; a test that takes one names it as a parameter.
MANAGERS = ("containerd", "_session_docker", "_session_node")
# Workers share the cgroups and the network.  These rings have containers of fixed ids in
# the default cgroup, which has the container's id for its name.
_FIXED_IDS = frozenset({"shimctl", "images"})
# gVisor has an abstract socket of the container's id.
_GVISOR = ("runsc", "gvisor")


def ring_of(path: Path) -> str:
    """Name the ring of a test file: its first directory below ``tests``."""
    parts = path.relative_to(_TESTS).parts if path.is_relative_to(_TESTS) else ()
    return parts[0] if len(parts) > 1 else "shim"


def group_of(item: pytest.Item) -> str:
    """Name the tests that must run in one worker with ``item``."""
    callspec = getattr(item, "callspec", None)
    params = callspec.params if callspec is not None else {}
    for fixture in MANAGERS:
        if fixture in params:
            return f"{ring_of(item.path)} under {params[fixture]}"
    if ring_of(item.path) in _FIXED_IDS or any(name in item.name for name in _GVISOR):
        return "fixed ids"
    return str(item.path)


def rings(durations: Iterable[tuple[str, float]]) -> list[str]:
    """Sum up seconds by ring; the slowest ring comes first."""
    totals: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for ring, seconds in durations:
        totals[ring] += seconds
        counts[ring] += 1
    slowest = sorted(totals, key=lambda ring: -totals[ring])
    return [f"{totals[ring]:7.1f} s  {counts[ring]:5d} tests  {ring}" for ring in slowest]


class Rings:
    """Collects the duration of each test and prints the sum of each ring."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seconds: dict[str, float] = defaultdict(float)
        self._start = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if len(self._seconds) < 2:
            return
        terminalreporter.section("time by ring")
        named = (
            (ring_of(self._root / nodeid.partition("::")[0]), seconds)
            for nodeid, seconds in self._seconds.items()
        )
        for line in rings(named):
            terminalreporter.write_line(line)
        wall = time.monotonic() - self._start
        terminalreporter.write_line(f"{wall:7.1f} s  wall clock")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        for item in items:
            item.add_marker(pytest.mark.xdist_group(group_of(item)))


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Rings(config.rootpath), "rings")
