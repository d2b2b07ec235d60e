"""Exit records: the exit status of each process, written to the bundle when it is reaped.

``init.exit`` and ``EXEC_ID.exit`` are JSON objects with the fields of
:class:`~shim.exit.Exit`.  ``delete`` and other programs read them when the shim is dead.
The record of an exec is removed with the exec; the record of the init process stays as
long as the bundle.

A record exists whole or not at all: it is written to a temporary file, synced and
renamed.  The rename is not synced, so a power failure may lose the record.

Source: none; containerd-shim-runc-v2 keeps no such files.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

from shim import log
from shim.exit import Exit

# The largest size of a record, in bytes; ``reason`` is the longest part.
_LONGEST = 4096
# The largest status, and the largest time in ns (the end of the year 9999), in a protobuf.
_STATUS_MAX = (1 << 32) - 1
_TIME_MAX = 253_402_300_799 * 10**9


def exit_file(bundle: str, exec_id: str = "") -> str:
    """Return the path of the record of an exec, or of the init process."""
    return f"{bundle}/{exec_id or 'init'}.exit"


def write_exit(bundle: str, exit_: Exit, exec_id: str = "") -> None:
    """Write ``exit_`` and replace an earlier one.  A failure logs a warning only."""
    # No exec's id begins with a dot.
    draft = f"{bundle}/.{exec_id or 'init'}.exit"
    # Not asdict(), which takes twice as long as all the rest of this in memory.
    fields = {
        "pid": exit_.pid,
        "exit_status": exit_.exit_status,
        "exited_at": exit_.exited_at,
        "reason": exit_.reason,
    }
    data = json.dumps(fields).encode()
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if os.write(fd, data) != len(data):
                raise OSError("the record was written only in part")
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(draft, exit_file(bundle, exec_id))  # noqa: PTH104 - see shim.container.bundle.Bundle
    except OSError as exc:
        path = exit_file(bundle, exec_id)
        log.warning("cannot write an exit record", path=path, error=exc)
        with suppress(OSError):
            os.unlink(draft)  # noqa: PTH108 - as above


def read_exit(bundle: str, exec_id: str = "") -> Exit | None:
    """Return the exit record of a process, or None if there is no valid one."""
    if "/" in exec_id or "\0" in exec_id + bundle:
        return None  # not the id of an exec: the path would be another file
    path = exit_file(bundle, exec_id)
    try:
        data = _read(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        log.debug("cannot read an exit record", path=path, error=exc)
        return None
    record = _parse(data)
    if record is None:
        log.debug("cannot parse an exit record", path=path)
    return record


def remove_exit(bundle: str, exec_id: str = "") -> None:
    """Remove the exit record of a process, if it exists."""
    with suppress(OSError):
        os.unlink(exit_file(bundle, exec_id))  # noqa: PTH108 - as above


def _read(path: str) -> bytes:
    # The file may be of any kind: a fifo must not block us, a huge file not fill our memory.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        data = os.read(fd, _LONGEST + 1)
    finally:
        os.close(fd)
    return data if len(data) <= _LONGEST else b""


def _parse(data: bytes) -> Exit | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    match value:
        case {
            "pid": int(pid),
            "exit_status": int(status),
            "exited_at": int(at),
            "reason": str(reason),
        } if not any(isinstance(number, bool) for number in (pid, status, at)):
            if 0 <= pid <= _STATUS_MAX and 0 <= status <= _STATUS_MAX and 0 < at <= _TIME_MAX:
                return Exit(pid, status, at, reason)
    return None
