"""How a process ended, from the record that its shim left in the bundle."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from shim import records
from shimctl.values import Exited

if TYPE_CHECKING:
    from pathlib import Path

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read_exit(bundle: str | Path, exec_id: str = "") -> Exited | None:
    """Return how the init of the container in ``bundle``, or an exec of it, ended.

    None if there is no record: it still runs, never ran, or its shim keeps none, as
    other shims do.  A record is there before anybody is told of the exit; that of
    an exec goes when the exec is deleted.  ``reason`` says so where the
    status is not known.
    """
    record = records.read_exit(str(bundle), exec_id)
    if record is None:
        return None
    # To the microsecond, as a shim's answer is read; a float would round.
    at = _EPOCH + timedelta(microseconds=record.exited_at // 1000)
    known = at if record.exited_at > 0 else None
    return Exited(record.exit_status, known, record.pid, record.reason)
