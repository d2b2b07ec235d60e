"""The sinks of output that the daemon opens itself: fifos and logging programs.

The scheme of the stdout address selects the kind of sink, for both streams.

Source: containerd-shim-runc-v2 process/io.go (schemes, the logger's fds and its
end) and process/io_util.go (the logger's arguments and environment).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.errors import NotFoundError, TimedOutError, UnavailableError
from shim.linux import fifos
from shim.linux.fifos import Fd

if TYPE_CHECKING:
    from shim.child import Child
    from shim.outputaddress import Address
    from shim.reaper import Reaper
    from shim.stdio.kept import Kept

# Seconds for a logger to report that it is ready, to exit after the end of its input,
# to exit after SIGTERM, and to exit after SIGKILL.
LOGGER_READY = 10.0
LOGGER_EOF = 2.0
LOGGER_TERM = 10.0
LOGGER_KILL = 2.0

_SIGTERM, _SIGKILL = 15, 9


def open_fifo(path: str) -> Fd | None:
    """Open the fifo at ``path`` to write to; return None if it is not a fifo.

    :raises NotFoundError: ``path`` does not exist; the manager creates the fifo.
    :raises InvalidError: ``path`` cannot name a file.
    """
    if not fifos.is_fifo(path):
        return None
    fifo = fifos.open_keep(path)
    fifos.grow(fifo)
    return fifo


class Logger:
    """A logging program and the container's ends of its two pipes.

    The program reads stdout from fd 3 and stderr from fd 4, and reports on fd 5
    that it is ready.  ``kept`` has a copy of its pidfd.
    """

    def __init__(
        self,
        name: str,
        child: Child,
        stdout: Fd,
        stderr: Fd,
        readers: list[Fd],
        kept: Kept,
    ) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.name = name
        self._child = child
        self._kept = kept
        self._readers = readers

    def started(self) -> None:
        """Close the daemon's read ends, so that a write after the logger's death fails."""
        for fd in self._readers:
            fd.close()

    async def aclose(self) -> None:
        """End the logger: close its input, then send SIGTERM, then SIGKILL."""
        self.started()
        self.stdout.close()
        self.stderr.close()
        with trio.move_on_after(LOGGER_EOF + LOGGER_TERM + LOGGER_KILL, shield=True) as scope:
            await self._stop()
        if scope.cancelled_caught:
            log.error(
                "cannot end a logging program: it did not exit after SIGKILL",
                logger=self.name,
                pid=self._child.pid,
            )
        self._kept.drop(f"logger/{self._child.pid}")

    async def _stop(self) -> None:
        with trio.move_on_after(LOGGER_EOF):
            await self._child.wait()
            return
        if not _signal(self._child, _SIGTERM):
            return
        with trio.move_on_after(LOGGER_TERM):
            await self._child.wait()
            return
        log.warning("killing a logging program that did not exit", logger=self.name)
        if _signal(self._child, _SIGKILL):
            await self._child.wait()


def _signal(child: Child, number: int) -> bool:
    try:
        child.signal(number)
    except NotFoundError:
        return False
    return True


async def open_logger(
    address: Address,
    reaper: Reaper,
    *,
    container_id: str,
    namespace: str,
    uid: int,
    gid: int,
    timeout: float = LOGGER_READY,
    directory: str | None = None,
    kept: Kept,
) -> Logger:
    """Start a logging program in ``directory`` and wait until it is ready.

    :raises NotFoundError: the program does not exist.
    :raises TimedOutError: it did not report that it is ready within ``timeout`` seconds.
    :raises UnavailableError: it exited before it was ready.
    """
    opened: list[Fd] = []
    child: Child | None = None
    try:
        stdout_r, stdout_w = fifos.open_pipe(uid, gid)
        opened += [stdout_r, stdout_w]
        stderr_r, stderr_w = fifos.open_pipe(uid, gid)
        opened += [stderr_r, stderr_w]
        ready_r, ready_w = (Fd(number) for number in os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
        opened += [ready_r, ready_w]
        os.set_blocking(ready_w.number, True)
        child = reaper.spawn(
            [address.path, *address.arguments],
            env={"CONTAINER_ID": container_id, "CONTAINER_NAMESPACE": namespace},
            fds={3: stdout_r.number, 4: stderr_r.number, 5: ready_w.number},
            directory=directory,
        )
        ready_w.close()
        await _wait_ready(address, ready_r, timeout)
        ready_r.close()
    except BaseException:
        for fd in opened:
            fd.close()
        if child is not None and _signal(child, _SIGKILL):
            with trio.move_on_after(LOGGER_KILL, shield=True):
                await child.wait()
        raise
    if child.exit is None:
        kept.put({f"logger/{child.pid}": child.pidfd})
    return Logger(address.path, child, stdout_w, stderr_w, [stdout_r, stderr_r], kept)


async def _wait_ready(address: Address, ready: Fd, timeout: float) -> None:
    with trio.move_on_after(timeout) as scope:
        await trio.lowlevel.wait_readable(ready.number)
    if scope.cancelled_caught:
        raise TimedOutError(
            f"logging program {address.path} was not ready within {timeout:g} s; "
            "it must close or write to fd 5"
        )
    # The scheme "binary" accepts the end of the pipe as ready, and so also a crash.
    if not os.read(ready.number, 1) and address.scheme == "binary-v2":
        raise UnavailableError(
            f"logging program {address.path} ended or closed fd 5 before it was ready; "
            "with binary-v2 it must write a byte to it"
        )
