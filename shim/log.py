"""The shim's log: key=value lines, written to containerd's fifo without blocking.

containerd opens ``<bundle>/log`` before it starts the shim, and copies the lines into its
own log.  If containerd stops reading, the fifo is full after 64 KiB and a blocking write
would stop the shim; so lines that do not fit are dropped and counted.

A daemon with several containers has several such fifos.  A line with the field ``id`` goes
into the fifo of that container, any other line into the newest one.

Source: containerd pkg/shim (log fifo).  The line format is logrus' text format, which
containerd's log and log tools parse.
"""

from __future__ import annotations

import _thread
import os
import time
import traceback

from shim.text import explain, printable

DEBUG, INFO, WARNING, ERROR = range(4)
_NAMES = ("debug", "info", "warning", "error")


class Log:
    """The fd for the lines, and the lowest level to write.

    ``fds`` are those of containers, by container id, the newest last.  No fd is owned.
    """

    def __init__(self, fd: int = 2, level: int = INFO) -> None:
        self.fd = fd
        self.level = level
        self.dropped = 0
        self.fds: dict[str, int] = {}
        self.owner = 0  # the thread that has attached the fds

    def write(self, level: int, message: str, fields: dict[str, object]) -> None:
        if level < self.level:
            return
        if self.dropped:
            fields["dropped_lines"] = self.dropped
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = f"time={_quoted(stamp)} level={_NAMES[level]} msg={_quoted(message)}"
        line += "".join(f" {key}={_quoted(_shown(value))}" for key, value in fields.items())
        try:
            # A write of less than PIPE_BUF bytes succeeds whole or not at all.
            os.write(self._fd_for(fields), line.encode(errors="replace")[:4000] + b"\n")
        except OSError:
            self.dropped += 1
        else:
            self.dropped = 0

    def _fd_for(self, fields: dict[str, object]) -> int:
        # A thread can have other files at these numbers, see shim.offthread.
        if not self.fds or _thread.get_ident() != self.owner:
            return self.fd
        newest = next(reversed(self.fds.values()))
        return self.fds.get(str(fields.get("id")), newest)


def _shown(value: object) -> str:
    return explain(value) if isinstance(value, BaseException) else str(value)


def _quoted(text: str) -> str:
    if text and all(c.isalnum() or c in "-._/@^+:" for c in text):
        return text
    body = printable(text.replace("\\", "\\\\").replace('"', '\\"'))
    return f'"{body}"'


_log = Log()


def configure(fd: int, level: int) -> None:
    """Write later lines of this process with at least ``level`` to ``fd``, and to no other."""
    _log.fd = fd
    _log.level = level
    _log.fds.clear()


def attach(id_: str, fd: int) -> None:
    """Write later lines about container ``id_`` to ``fd``, which is not owned."""
    _log.fds[id_] = fd
    _log.owner = _thread.get_ident()


def detach(id_: str) -> None:
    """Write no later line to the fd of container ``id_``."""
    _log.fds.pop(id_, None)


def fileno() -> int:
    """Return the fd for the lines of no container and of all threads; it is not owned."""
    return _log.fd


def debug(message: str, **fields: object) -> None:
    _log.write(DEBUG, message, fields)


def info(message: str, **fields: object) -> None:
    _log.write(INFO, message, fields)


def warning(message: str, **fields: object) -> None:
    _log.write(WARNING, message, fields)


def error(message: str, **fields: object) -> None:
    _log.write(ERROR, message, fields)


def crash(message: str, exc: BaseException, **fields: object) -> None:
    """Log an unexpected error ``exc``, with the place where it was raised."""
    trace = "".join(traceback.format_exception(exc)).strip()
    _log.write(ERROR, message, fields | {"error": explain(exc), "trace": trace})
