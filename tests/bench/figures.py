"""The measured figures: the name, the unit and the goal of each.  Pure data.

A goal is the ratio of our figure to that of the first other shim, or a plain limit.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report.

    ``more``: more is better.  ``target`` is a ratio, ``on_disk`` the ratio with bundles
    on a disk if it is another, ``limit`` a value in ``unit``.
    """

    key: str
    title: str
    unit: str
    target: float | None = None
    limit: float | None = None
    more: bool = False
    on_disk: float | None = None

    def ratio_wanted(self, *, on_disk: bool) -> float | None:
        """Return the ratio to reach."""
        return self.on_disk if on_disk and self.on_disk is not None else self.target


FIGURES = (
    Figure("start", "`start` command", "ms", 1.0),
    Figure("first", "`start` of a host's first shim", "ms", limit=300),
    Figure("cold", "`start` without a fork server", "ms", limit=350),
    Figure("connect", "first call (connect + Connect)", "ms", 1.0),
    Figure("create", "Create", "ms", 0.95),
    Figure("run", "Start", "ms", 0.95),
    Figure("state", "State", "ms", 1.0),
    Figure("stats", "Stats", "ms", 1.0),
    Figure("pids", "Pids", "ms", 1.0),
    Figure("exec", "exec of `true` (Exec + Start + Wait + Delete)", "ms", 0.9),
    Figure("wait", "exit to Wait answered", "ms", 1.0, on_disk=1.2),
    Figure("exit", "exit to event received", "ms", 1.0, on_disk=1.2),
    Figure("delete", "Delete", "ms", 1.0),
    Figure("cleanup", "`delete` command", "ms", 1.0),
    Figure("sum", "start + Create + Start + Delete + delete", "ms", 1.0),
    Figure("starts", "`start` of {at_once} at once", "ms", 1.0),
    Figure("at-once", "Create + Start of {at_once} containers at once", "ms", 1.0),
    Figure("clients", "State with {clients} clients, median", "ms", 1.0),
    Figure("clients-p99", "State with {clients} clients, 99th percentile", "ms", 1.0),
    Figure("reconnect", "reconnect (connect + Connect + Pids), a shim", "ms", 1.0),
    Figure("pss", "PSS a container, of {containers}", "MiB", 1.0),
    Figure("pss-first", "PSS a container, of a host's first {containers}", "MiB", 1.0),
    Figure("stdout", "stdout", "MiB/s", 2.0, more=True),
    Figure("stdout-cpu", "stdout, CPU of the shim", "s/GiB", 0.5),
    Figure("terminal", "terminal", "MiB/s", 1.0, more=True),
    Figure("terminal-cpu", "terminal, CPU of the shim", "s/GiB", 0.8),
    Figure("threads", "threads", "", limit=1),
    Figure("fds", "open files", "", 1.0),
    Figure("wakeups", "wake-ups a second, idle", "1/s", limit=0),
)
BY_KEY = {figure.key: figure for figure in FIGURES}
