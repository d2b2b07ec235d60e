"""Exit records: the exit status of each process, written to the bundle when it is reaped.

``init.exit`` and ``EXEC_ID.exit`` are JSON objects with the fields of
:class:`~shim.exit.Exit`.  ``delete`` and other programs read them when the shim is dead.
The record of an exec is removed with the exec; the record of the init process stays as
long as the bundle.

A record exists whole or not at all: it is written to a temporary file, synced and
renamed.  The rename is not synced, so a power failure may lose the record.

Until the exit event is queued, the record has the sticky bit, which has no meaning for files:
``shim.events.unpublished`` finds the events that a killed daemon did not publish.  The journal
of the bundle then has the event, unless it cannot be written: the event is delivered from
memory, so that a bit that stayed would have it published twice.  A record on a disk has none,
since to remove it may wait for the disk.

Source: none; containerd-shim-runc-v2 keeps no such files.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress

from shim import log
from shim.exit import Exit

# The largest size of a record, in bytes; ``reason`` is the longest part.
_LONGEST = 4096
_MODE = 0o600
# The largest status, and the largest time in ns (the end of the year 9999), in a protobuf.
_STATUS_MAX = (1 << 32) - 1
_TIME_MAX = 253_402_300_799 * 10**9


def exit_file(bundle: str, exec_id: str = "") -> str:
    """Return the path of the record of an exec, or of the init process."""
    return f"{bundle}/{exec_id or 'init'}.exit"


def write_exit(bundle: str, exit_: Exit, exec_id: str = "", *, unpublished: bool = False) -> None:
    """Write ``exit_`` and replace an earlier one.  A failure logs a warning only.

    ``unpublished`` is set if :func:`note_published` follows.
    """
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
        mode = _MODE | stat.S_ISVTX if unpublished else _MODE
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
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


def note_published(bundle: str, exec_id: str = "") -> None:
    """Note that the exit event of the record, if there is one, is queued for delivery."""
    with suppress(OSError):
        os.chmod(exit_file(bundle, exec_id), _MODE)  # noqa: PTH101 - a plain string


def unpublished_exits(bundle: str) -> list[tuple[str, Exit]]:
    """Return the recorded exits of which no event may have been queued, with the execs' ids.

    They are in the order of their events: the init process, with an empty id, is the last.
    """
    found = []
    with suppress(OSError):  # the manager has removed the bundle
        for name in os.listdir(bundle):  # noqa: PTH208 - names are wanted
            exec_id = name.removesuffix(".exit")
            # A draft's name begins with a dot, and an id is ASCII.
            if exec_id == name or name.startswith(".") or not name.isascii():
                continue
            exec_id = "" if exec_id == "init" else exec_id
            mode = os.lstat(f"{bundle}/{name}").st_mode
            is_unpublished = stat.S_ISREG(mode) and mode & stat.S_ISVTX
            if is_unpublished and (exit_ := read_exit(bundle, exec_id)) is not None:
                found.append((exec_id, exit_))
    return sorted(found, key=lambda one: (not one[0], one[1].exited_at))


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
