"""The checks of ``shimctl doctor``.  No check changes anything on the host.

A check is a function that returns findings.  Each has a time limit, runs beside the
others, and its failure is a finding.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from shim.text import explain
from shim.version import VERSION
from shimctl.host.doctor import (
    bounded,
    configuration,
    machine,
    managers,
    places,
    programs,
    servers,
    shims,
)
from shimctl.host.doctor.finding import Finding, Level, Report

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    Check = Callable[[], Awaitable[list[Finding]]]

__all__ = ["LIMIT", "Finding", "Level", "Report", "examine"]

LIMIT = 8.0  # s for one check; they run at the same time


async def examine(
    *,
    states: Sequence[str | Path] = (),
    root: str = "/",
    more: Mapping[str, Check] | None = None,
) -> Report:
    """Run every check; return within some ten seconds.

    ``states`` are further state directories of containerd, ``root`` the directory below
    which configuration files are read.  ``more`` are further checks, by their area.
    """
    checks: dict[str, Check] = {
        "machine": partial(_in_thread, machine.check),
        "programs": programs.check,
        "managers": partial(_in_thread, managers.check),
        "configuration": partial(_in_thread, partial(configuration.check, root)),
        "directories": partial(_in_thread, places.check),
        "fork server": servers.check,
        "shims": partial(shims.check, states),
        **(more or {}),
    }
    return await run_checks(checks)


async def run_checks(checks: dict[str, Check], limit: float = LIMIT) -> Report:
    """Run ``checks`` at the same time; each ends after ``limit`` seconds."""
    results: dict[str, list[Finding]] = {}

    async def run(area: str, check: Check) -> None:
        made = partial(Finding, area, "check", Level.BROKEN)
        try:
            with trio.fail_after(limit):
                results[area] = await check()
        except trio.TooSlowError:
            text = f"did not end within {limit:g} s"
            results[area] = [made(text, "look for a disk or a program that hangs")]
        except Exception as exc:
            text = f"failed: {type(exc).__name__}: {explain(exc)}"
            results[area] = [made(text, "report this line")]

    async with trio.open_nursery() as nursery:
        for area, check in checks.items():
            nursery.start_soon(run, area, check)
    return Report(VERSION, tuple(finding for area in checks for finding in results[area]))


async def _in_thread(function: Callable[[], list[Finding]]) -> list[Finding]:
    return await bounded.call(function, LIMIT)
