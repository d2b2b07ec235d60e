"""Checks the managers that run: whether they find the shim, and where its log goes.

A manager copies the log of its shims to its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import psutil

from shim import names
from shimctl.host.doctor import processes
from shimctl.host.doctor.finding import Finding, Level
from shimctl.host.doctor.programs import find

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shimctl.host.doctor.processes import Destination

_AREA = "managers"
NAMES = ("containerd", "dockerd", "crio", "k3s", "k3s-server")


@dataclass(frozen=True, slots=True)
class Manager:
    """A running manager; ``path`` is its PATH, ``command`` its arguments."""

    name: str
    pid: int
    command: tuple[str, ...]
    path: str
    log: Destination


def running() -> list[Manager]:
    """Return the managers that run on this host."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        name, command = process.info["name"], process.info["cmdline"] or []
        if name in NAMES:
            found.append(
                Manager(
                    name,
                    process.pid,
                    tuple(command),
                    processes.search_path(process.pid),
                    processes.stderr_of(process.pid),
                )
            )
    return found


def check() -> list[Finding]:
    """Check every running manager."""
    managers = running()
    if not managers:
        text = "none runs; a shim of `shimctl run --debug` logs to stderr, others log nothing"
        return [Finding(_AREA, "running", Level.NOTE, text)]
    return [finding for manager in managers for finding in judge(manager)]


def judge(manager: Manager) -> list[Finding]:
    """Judge one manager."""
    subject = f"{manager.name} {manager.pid}"
    made = partial(Finding, _AREA, subject)
    found = [_judge_log(manager, subject)]
    # dockerd starts no shim itself; its containerd does.
    if manager.name != "dockerd" and manager.path:
        for name in missing(manager.path):
            text = f"{name} is not on its PATH, {manager.path}"
            level = Level.ADVICE if name == names.EXECUTABLE else Level.BROKEN
            remedy = "run `shimctl install`" if name == names.EXECUTABLE else f"install {name}"
            found.append(made(level, text, remedy))
    return found


def missing(path: str) -> Sequence[str]:
    """Return the programs that a manager with this PATH does not find."""
    lacking = [] if find(names.EXECUTABLE, path) else [names.EXECUTABLE]
    if not find("runc", path) and not find("crun", path):
        lacking.append("runc")
    return lacking


def _judge_log(manager: Manager, subject: str) -> Finding:
    text = f"its log, with that of its shims, goes to {manager.log}"
    if manager.log.kind == "nothing":
        remedy = "start it with its stderr in a file or the journal"
        return Finding(_AREA, subject, Level.ADVICE, text, remedy)
    return Finding(_AREA, subject, Level.OK, text)
