"""The daemon's side of a file stream's helper process.

One process for each path opens the file and copies, so that a disk that hangs
does not block the daemon.  ``shim.stdio.filecopy`` is the process's work.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.errors import NotFoundError, TimedOutError
from shim.stdio import filecopy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shim.child import Child
    from shim.linux.fifos import Fd
    from shim.reaper import Reaper

# Seconds for a file to be opened, and its directories to be made.
OPEN = 10.0
# Seconds for a process that writes to end after STOP, and for any process after SIGKILL.
_STOP, _KILL = 1.0, 0.5
# Seconds before a process that was killed is replaced.
_RESTART_PAUSE = 1.0

_SIGKILL = 9


class FileHelper:
    """Copies between the file at ``path`` and the pipes ``fds``.

    Use :func:`open_writer` or :func:`open_reader`.
    """

    def __init__(
        self,
        path: str,
        work: Callable[[socket.socket], None],
        reaper: Reaper,
        fds: Sequence[Fd],
        *,
        writes: bool,
    ) -> None:
        self.path = path
        self._writes = writes  # whether it writes to the file; it reads otherwise
        self._work = work
        self._reaper = reaper
        self._fds = fds
        self._closing = False
        self._changed = trio.Event()  # set when the process is replaced or not used any more
        self._control, self._child = self._fork()

    def _fork(self) -> tuple[socket.socket, Child]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                child = self._reaper.fork(
                    ["trio-shim-file", os.fsencode(self.path).decode(errors="replace")],
                    lambda: self._work(theirs),
                    [*(fd.number for fd in self._fds), theirs.fileno()],
                )
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        return ours, child

    async def wait_opened(self, timeout: float) -> None:
        """Wait until the file is open.

        :raises NotFoundError, InvalidError, OSError: the file cannot be opened.
        :raises TimedOutError: the file was not opened within ``timeout`` seconds.
        """
        with trio.move_on_after(timeout):
            message = await self._receive()
            if message != filecopy.OPENED:
                raise filecopy.decode_error(message or b"OSError\n5\nthe helper died", self.path)
            return
        raise TimedOutError(
            f"open {self.path}: no answer from its file system within {timeout:g} s; "
            "check the disk or the server behind it"
        )

    def start(self, nursery: trio.Nursery) -> None:
        """Start to copy, and replace the process if it is killed."""
        self._send(filecopy.GO)
        nursery.start_soon(self._follow)

    async def wait_drained(self) -> None:
        """Wait until the bytes that are in the pipes now are written to the file."""
        while self._writes and self._control.fileno() >= 0:
            changed = self._changed
            self._send(filecopy.DRAIN)
            if await self._drained():
                return
            await changed.wait()  # the process has ended; a killed one is replaced

    async def _drained(self) -> bool:
        """Return whether the process has written all bytes; False if it has ended."""
        message = b""
        with contextlib.suppress(trio.ClosedResourceError):
            while (message := await self._receive()) not in {filecopy.DRAINED, b""}:
                pass
        return message == filecopy.DRAINED

    async def stop(self) -> None:
        """End the process though bytes are left in the pipes; takes at most two seconds.

        A process whose disk hangs is sent SIGKILL and not waited for: it ends when
        the disk responds.
        """
        self._closing = True
        self._send(filecopy.STOP)
        with trio.move_on_after(_STOP if self._writes else 0):
            await self._child.wait()
        with contextlib.suppress(NotFoundError):
            self._child.signal(_SIGKILL)
        with trio.move_on_after(_KILL) as scope:
            await self._child.wait()
        if scope.cancelled_caught:
            log.error(
                "cannot end the process that copies to a file: its file system does not respond",
                path=self.path,
                pid=self._child.pid,
            )
        self._close()

    async def _follow(self) -> None:
        """Replace the process if it is killed; close the pipes once it exits with 0."""
        while True:
            exit_ = await self._child.wait()
            if self._closing:
                return
            if exit_.exit_status == 0 or not await self._replace():
                self._log_failed_open()
                self._close()
                return

    def _log_failed_open(self) -> None:
        """Log the error of a process that replaced another and could not open the file."""
        message = b""
        for _ in range(2):  # an error of the socket, GO was not read, comes before a message
            with contextlib.suppress(OSError):
                message = message or self._control.recv(1 << 12)
        if message not in {filecopy.OPENED, filecopy.DRAINED, b""}:
            log.error(
                "cannot open a file again: output is lost",
                path=self.path,
                error=filecopy.decode_error(message, self.path),
            )

    async def _replace(self) -> bool:
        log.error("the process that copies to a file was killed: starting another", path=self.path)
        await trio.sleep(_RESTART_PAUSE)
        if self._closing:
            return False
        trio.lowlevel.notify_closing(self._control)
        self._control.close()
        try:
            self._control, self._child = self._fork()
        except OSError as exc:
            log.error(
                "cannot fork a process that copies to a file: output is lost",
                path=self.path,
                error=exc,
            )
            return False
        self._send(filecopy.GO)
        self._changed.set()
        self._changed = trio.Event()
        return True

    async def _receive(self) -> bytes:
        """Return the next message, or no bytes if the process has ended."""
        control = self._control
        while control.fileno() >= 0:
            await trio.lowlevel.wait_readable(control)
            # Another task may have closed it since the wake-up.
            if control.fileno() >= 0:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    return control.recv(1 << 12)
        return b""

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # the process has ended
            self._control.send(message)

    def _close(self) -> None:
        if self._control.fileno() >= 0:
            trio.lowlevel.notify_closing(self._control)
            self._control.close()
        for fd in self._fds:
            fd.close()
        self._changed.set()


async def open_writer(
    path: str, sources: Sequence[Fd], reaper: Reaper, *, create: bool, timeout: float
) -> FileHelper:
    """Open the file; the bytes of the pipes ``sources`` are appended after ``start()``.

    The helper owns ``sources`` from this call on.

    :raises NotFoundError, InvalidError, OSError, TimedOutError: see ``wait_opened``.
    """
    numbers = [fd.number for fd in sources]

    def work(control: socket.socket) -> None:
        filecopy.write_file(path, create=create, sources=numbers, control=control)

    return await _opened(FileHelper(path, work, reaper, sources, writes=True), timeout)


async def open_reader(path: str, sink: Fd, reaper: Reaper, *, timeout: float) -> FileHelper:
    """Open the file; its content is written to the pipe ``sink`` after ``start()``.

    The helper owns ``sink`` from this call on.

    :raises NotFoundError, InvalidError, OSError, TimedOutError: see ``wait_opened``.
    """
    number = sink.number

    def work(control: socket.socket) -> None:
        filecopy.read_file(path, sink=number, control=control)

    return await _opened(FileHelper(path, work, reaper, [sink], writes=False), timeout)


async def _opened(helper: FileHelper, timeout: float) -> FileHelper:
    try:
        await helper.wait_opened(timeout)
    except BaseException:
        with trio.CancelScope(shield=True):
            await helper.stop()
        raise
    return helper
