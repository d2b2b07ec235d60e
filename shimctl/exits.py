"""Read the shim's address and the exit records in a bundle."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from shim import records
from shim.errors import InvalidError, NotFoundError
from shimctl.values import Exited

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST = 65536  # the most bytes that are read of a file with an address


def read_address(bundle: str | Path) -> str:
    """Return the address of the shim of ``bundle``, from ``bootstrap.json`` or ``address``.

    The manager or the shim wrote these files.  This does not check whether a shim listens
    on the address.

    :raises NotFoundError: there is no such bundle, or no shim was started for it.
    :raises InvalidError: the address cannot be read from the file.
    """
    if address := find_address(bundle):
        return address
    if not Path(bundle).is_dir():
        raise NotFoundError(f"there is no bundle {bundle}")
    for name in ("bootstrap.json", "address"):
        if (path := Path(bundle, name)).exists():
            raise InvalidError(f"cannot read the shim's address from {path}; see `shimctl ps`")
    raise NotFoundError(f"no shim was started for {bundle}; it has no file with an address")


def find_address(bundle: str | Path) -> str:
    """Return what :func:`read_address` returns, but an empty string in place of an error."""
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
    """Return the exit record of the init process in ``bundle``, or of its exec ``exec_id``.

    Returns None if there is no record: the process still runs, never ran, or its shim
    writes no records, as shims other than the trio shim do.  A record is written before
    the exit is published.  The record of an exec is removed when the exec is deleted.
    If the exit status is unknown, ``reason`` gives the cause.
    """
    record = records.read_exit(str(bundle), exec_id)
    if record is None:
        return None
    # Microseconds, as in a shim's reply; a float would round them.
    at = _EPOCH + timedelta(microseconds=record.exited_at // 1000)
    known = at if record.exited_at > 0 else None
    return Exited(record.exit_status, known, record.pid, record.reason)
