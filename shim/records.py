"""How a process ended, kept in the bundle from the moment it is known.

``init.exit`` and ``EXEC_ID.exit`` are JSON objects with the fields of
:class:`ExitRecord`.  They are for whoever asks when the shim is gone; that of an
exec goes with the exec, that of the init stays for as long as the bundle does.

A record is whole or not there: it is written beside its place, synced and
renamed.  The rename is not waited for, so a power cut may lose the record.

Source: none; containerd-shim-runc-v2 keeps no such files.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass

from shim import log

# Bytes of a record that are read at most; its longest part is a sentence.
_LONGEST = 4096
# What a protobuf can say of a status, and of a time: the end of the year 9999, in ns.
_STATUS_MAX = (1 << 32) - 1
_TIME_MAX = 253_402_300_799 * 10**9


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """``exit_status`` is the shell's number: the exit code, or 128 + signal.

    ``exited_at`` is in nanoseconds since the epoch.  ``reason`` is empty, or says
    why the status is not known: it is then 255.
    """

    pid: int
    exit_status: int
    exited_at: int
    reason: str = ""


def exit_file(bundle: str, exec_id: str = "") -> str:
    """Return the path of the record of an exec, or of the init."""
    return f"{bundle}/{exec_id or 'init'}.exit"


def write_exit(bundle: str, record: ExitRecord, exec_id: str = "") -> None:
    """Write ``record`` over what was there.  One that cannot be written costs a warning."""
    # No exec's id begins with a dot.
    draft = f"{bundle}/.{exec_id or 'init'}.exit"
    data = json.dumps(asdict(record)).encode()
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if os.write(fd, data) != len(data):
                raise OSError("no room for all of it")
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(draft, exit_file(bundle, exec_id))  # noqa: PTH104 - see shim.container.bundle.Bundle
    except OSError as exc:
        log.warning("if the shim dies, an exit is forgotten", bundle=bundle, error=exc)
        with suppress(OSError):
            os.unlink(draft)  # noqa: PTH108 - as above


def read_exit(bundle: str, exec_id: str = "") -> ExitRecord | None:
    """Return how a process ended, or None if that is not known.

    A record that makes no sense is none.
    """
    if "/" in exec_id or "\0" in exec_id + bundle:
        return None  # no exec's id, and so somebody else's file
    path = exit_file(bundle, exec_id)
    try:
        data = _read(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        log.debug("an exit record cannot be read", path=path, error=exc)
        return None
    record = _parse(data)
    if record is None:
        log.debug("an exit record makes no sense", path=path)
    return record


def forget_exit(bundle: str, exec_id: str = "") -> None:
    """Remove the record of a process, if there is one."""
    with suppress(OSError):
        os.unlink(exit_file(bundle, exec_id))  # noqa: PTH108 - as above


def _read(path: str) -> bytes:
    # Whatever has that name: a fifo holds us not, nor does a huge file fill us.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        data = os.read(fd, _LONGEST + 1)
    finally:
        os.close(fd)
    return data if len(data) <= _LONGEST else b""


def _parse(data: bytes) -> ExitRecord | None:
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
                return ExitRecord(pid, status, at, reason)
    return None
