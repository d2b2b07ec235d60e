"""The exit of a process, as it is reaped, recorded and published.  This module is pure."""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN_STATUS = 255  # containerd client/process.go UnknownExitStatus


@dataclass(frozen=True, slots=True)
class Exit:
    """How and when the process ``pid`` exited.

    ``exit_status`` is as in a shell: the exit code, or 128 + signal.
    ``exited_at`` is UTC, in nanoseconds since the epoch.
    ``reason`` is empty, or the reason why ``exit_status`` is unknown: it is then
    ``UNKNOWN_STATUS``.
    """

    pid: int
    exit_status: int
    exited_at: int
    reason: str = ""


# The exit that Delete and Wait return for an exec or a restore that was never started:
# no pid, the status 0 and no time, as Go's shim.
NEVER_STARTED = Exit(0, 0, 0, "the process was never started")
