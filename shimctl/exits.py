"""What is to be read in a bundle: where its shim listens, and how its processes ended."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from shim import records
from shimctl.values import Exited

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST = 65536  # bytes of a file with an address


def read_address(bundle: str | Path) -> str:
    """Return where the shim of ``bundle`` listens, as its manager or it wrote it down.

    Empty if there is nothing to be read.  Whether somebody listens there is another
    question.
    """
    try:
        with open(Path(bundle, "bootstrap.json"), "rb") as file:
            return str(json.loads(file.read(_LONGEST))["address"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    try:
        with open(Path(bundle, "address"), encoding="utf-8") as file:
            return file.read(_LONGEST).strip()
    except (OSError, ValueError):
        return ""


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
