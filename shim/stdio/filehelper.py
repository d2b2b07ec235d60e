"""The daemon's side of a file stream's helper process.

One process for each path opens the file and copies, so that a disk that hangs
does not block the daemon.  ``shim.stdio.filecopy`` is the process's work.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.errors import NotFoundError, TimedOutError
from shim.linux.fdpassing import receive
from shim.linux.fifos import Fd
from shim.stdio import filecopy
from shim.stdio.kept import Kept

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shim.child import Child
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

    Use :func:`open_writer` or :func:`open_reader`.  ``kept`` has copies of the fds, with
    roles that begin with ``role``, for :func:`restore_helper`;
    with ``inherited`` it has them from a daemon that was killed.
    """

    def __init__(
        self,
        path: str,
        work: Callable[[socket.socket], None],
        reaper: Reaper,
        fds: Sequence[Fd],
        *,
        writes: bool,
        kept: Kept | None = None,
        role: str = "",
        inherited: tuple[int, Child] | None = None,
    ) -> None:
        self.path = path
        self._writes = writes  # whether it writes to the file; it reads otherwise
        self._work = work
        self._reaper = reaper
        self._fds = fds
        self._closing = False
        self._changed = trio.Event()  # set when the process is replaced or not used any more
        self._kept = kept or Kept()
        self._role = role
        if inherited is not None:
            self._control, self._child = socket.socket(fileno=inherited[0]), inherited[1]
        else:
            self._control, self._child = self._fork()

    def keep(self) -> None:
        """Keep the fds; the file is open."""
        self._kept.hold({f"{self._role}/pipe/{n}": fd for n, fd in enumerate(self._fds)})
        self._keep_process()

    def _keep_process(self) -> None:
        if self._child.exit is None:
            self._kept.put(
                {self._control_role: self._control.fileno(), self._process_role: self._child.pidfd}
            )

    @property
    def _control_role(self) -> str:
        return f"{self._role}/control"

    @property
    def _process_role(self) -> str:
        return f"{self._role}/process/{self._child.pid}"

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
            word = b"%d" % time.monotonic_ns()
            self._send(filecopy.DRAIN + b" " + word)
            if await self._drained(word):
                return
            await changed.wait()  # the process has ended; a killed one is replaced

    async def _drained(self, word: bytes) -> bool:
        """Return whether the process has written all bytes; False if it has ended."""
        message, wanted = b"", filecopy.DRAINED + b" " + word
        with contextlib.suppress(trio.ClosedResourceError):
            while (message := await self._receive()) not in {wanted, b""}:
                pass
        return message == wanted

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
                message = message or receive(self._control, 1 << 12)
        if message and not message.startswith((filecopy.OPENED, filecopy.DRAINED)):
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
        self._kept.drop(self._control_role, self._process_role)
        try:
            self._control, self._child = self._fork()
        except OSError as exc:
            log.error(
                "cannot fork a process that copies to a file: output is lost",
                path=self.path,
                error=exc,
            )
            return False
        self._keep_process()
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
                    return receive(control, 1 << 12)
        return b""

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # the process has ended
            self._control.send(message)

    def _close(self) -> None:
        if self._control.fileno() >= 0:
            trio.lowlevel.notify_closing(self._control)
            self._control.close()
            self._kept.drop(self._control_role, self._process_role)
        for fd in self._fds:
            fd.close()
        self._changed.set()


async def open_writer(
    path: str,
    sources: Sequence[Fd],
    reaper: Reaper,
    *,
    create: bool,
    timeout: float,
    kept: Kept | None = None,
    role: str = "",
) -> FileHelper:
    """Open the file; the bytes of the pipes ``sources`` are appended after ``start()``.

    The helper owns ``sources`` from this call on.

    :raises NotFoundError, InvalidError, OSError, TimedOutError: see ``wait_opened``.
    """
    work = _writing(path, sources, create=create)
    helper = FileHelper(path, work, reaper, sources, writes=True, kept=kept, role=role)
    return await _opened(helper, timeout)


async def open_reader(
    path: str, sink: Fd, reaper: Reaper, *, timeout: float, kept: Kept, role: str
) -> FileHelper:
    """Open the file; its content is written to the pipe ``sink`` after ``start()``.

    The helper owns ``sink`` from this call on.

    :raises NotFoundError, InvalidError, OSError, TimedOutError: see ``wait_opened``.
    """
    work = _reading(path, sink)
    helper = FileHelper(path, work, reaper, [sink], writes=False, kept=kept, role=role)
    return await _opened(helper, timeout)


def restore_helper(
    path: str, reaper: Reaper, *, writes: bool, create: bool, kept: Kept, role: str
) -> FileHelper | None:
    """Return the helper of a killed daemon, which runs on; None if it has ended and is done."""
    fds = [kept.take(name) or Fd(-1) for name in sorted(kept.roles(f"{role}/pipe/"))]
    child = kept.watch(reaper, f"{role}/process")
    control = kept.take_number(f"{role}/control")
    if child is None or control < 0:
        for fd in fds:
            fd.close()
        return None
    work = _writing(path, fds, create=create) if writes else _reading(path, *fds)
    return FileHelper(
        path, work, reaper, fds, writes=writes, kept=kept, role=role, inherited=(control, child)
    )


def _writing(path: str, sources: Sequence[Fd], *, create: bool) -> Callable[[socket.socket], None]:
    numbers = [fd.number for fd in sources]

    def work(control: socket.socket) -> None:
        filecopy.write_file(path, create=create, sources=numbers, control=control)

    return work


def _reading(path: str, sink: Fd) -> Callable[[socket.socket], None]:
    number = sink.number

    def work(control: socket.socket) -> None:
        filecopy.read_file(path, sink=number, control=control)

    return work


async def _opened(helper: FileHelper, timeout: float) -> FileHelper:
    try:
        await helper.wait_opened(timeout)
    except BaseException:
        with trio.CancelScope(shield=True):
            await helper.stop()
        raise
    helper.keep()
    return helper
