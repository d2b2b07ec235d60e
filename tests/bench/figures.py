"""The measured figures: the name, the unit and the target of each figure.

A target is the ratio of our figure to the other shim's that the project aims
for, or for ``cold`` a plain limit.  Pure data.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report.

    ``more``: more is better.  ``target`` is a ratio, ``limit`` a value in
    ``unit``; either may be missing.
    """

    key: str
    title: str
    unit: str
    target: float | None = None
    limit: float | None = None
    more: bool = False


FIGURES = (
    Figure("start", "`start` command", "ms", 1.6),
    Figure("cold", "`start` without a fork server", "ms", limit=350),
    Figure("connect", "first call (connect + Connect)", "ms"),
    Figure("create", "Create", "ms", 0.95),
    Figure("run", "Start", "ms", 0.95),
    Figure("state", "State", "ms", 1.0),
    Figure("stats", "Stats", "ms"),
    Figure("pids", "Pids", "ms"),
    Figure("exec", "exec of `true` (Exec + Start + Wait + Delete)", "ms", 0.95),
    Figure("wait", "exit to Wait answered", "ms"),
    Figure("exit", "exit to event received", "ms", 1.0),
    Figure("delete", "Delete", "ms", 0.95),
    Figure("cleanup", "`delete` command", "ms"),
    Figure("sum", "start + Create + Start + Delete + delete", "ms", 1.0),
    Figure("starts", "`start` of {at_once} at once", "ms"),
    Figure("at-once", "Create + Start of {at_once} containers at once", "ms"),
    Figure("clients", "State with {clients} clients, median", "ms"),
    Figure("clients-p99", "State with {clients} clients, 99th percentile", "ms"),
    Figure("reconnect", "reconnect (connect + Connect + Pids), a shim", "ms"),
    Figure("pss", "PSS a container, of {containers}", "MiB", 1.1),
    Figure("stdout", "stdout", "MiB/s", 2.0, more=True),
    Figure("stdout-cpu", "stdout, CPU of the shim", "s/GiB", 0.5),
    Figure("terminal", "terminal", "MiB/s", 1.0, more=True),
    Figure("terminal-cpu", "terminal, CPU of the shim", "s/GiB", 0.8),
    Figure("threads", "threads", "", limit=1),
    Figure("fds", "open files", ""),
    Figure("wakeups", "wake-ups a second, idle", "1/s"),
)
BY_KEY = {figure.key: figure for figure in FIGURES}
