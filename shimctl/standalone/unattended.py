"""Find the containers of ``run --rm`` that will stay: the process that removes them was killed.

That process is their monitor, or the ``shimctl run`` that was attached to them.  It may also
have failed to remove them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from shim.errors import ShimError
from shimctl import directories
from shimctl.host.doctor.finding import Finding, Level
from shimctl.standalone import runlock, settings
from shimctl.standalone.runlock import Part
from shimctl.standalone.settings import read_settings

if TYPE_CHECKING:
    from pathlib import Path

    from shimctl.standalone.settings import Settings

AREA = "containers"
FAILURE = "removal.error"  # in the working directory: why the monitor could not remove it


def is_being_removed(work: Path) -> bool:
    """Return whether a process removes the container in ``work``, or will when it exits."""
    kept = _read(work)
    return kept is not None and kept.remove and _is_attended(work, kept)


def problem_of(work: Path) -> str:
    """Return why the container in ``work`` is not removed at its end; empty if all is right."""
    kept = _read(work)
    if kept is None or not kept.remove or _is_attended(work, kept):
        return ""
    with suppress(OSError):
        reason = (work / FAILURE).read_text(errors="replace").strip()
        return f"it could not be removed at its end: {reason}"
    return "the process that removes it at its end was killed"


async def check() -> list[Finding]:
    """Return a finding for each such container, for ``shimctl doctor``."""
    found = []
    for path in directories.listed(directories.state_directory(), f"*/*/{settings.FILE}"):
        await trio.lowlevel.checkpoint()
        work = path.parent
        if text := problem_of(work):
            name = f"{work.parent.name}/{work.name}"
            remedy = "`shimctl prune` removes it once it has exited"
            found.append(Finding(AREA, name, Level.ADVICE, text, remedy))
    return found


def _read(work: Path) -> Settings | None:
    with suppress(ShimError):
        return read_settings(work)
    return None


def _is_attended(work: Path, kept: Settings) -> bool:
    return (
        runlock.is_held(work, Part.MONITOR, kept.runs)
        or runlock.is_held(work, Part.FOREGROUND)
        or runlock.is_held(work, Part.CHANGE)
    )
