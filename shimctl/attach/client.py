"""Attach to the stdio of a running process, together with other clients.

All clients of a process are equal.  Each is a member of a hub, which is one of
them, possibly itself.  When the hub exits, each member tries to become the next
one.  Detaching does not affect the process: neither the end of a client's input
nor a signal to a client reaches it.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from contextlib import (
    ExitStack,
    aclosing,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from functools import partial
from typing import TYPE_CHECKING

import trio

from shim.errors import InvalidError, NotFoundError, ShimError, TimedOutError, WrongStateError
from shim.linux.peers import peer_of
from shim.scope import background
from shimctl.attach import hub
from shimctl.attach.keys import KeyFilter
from shimctl.attach.readers import readers_of
from shimctl.attach.relay import Pipes, read_in, write
from shimctl.attach.session import open_signals
from shimctl.attach.terminal import check_input, own_size, raw_mode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from shimctl.client import Task
    from shimctl.values import Exited, Stdio

_HUB_TIMEOUT = 5.0  # s for a hub to appear, and to send its first message
_PAUSE = 0.02  # s between two attempts to find a hub
_LEAVING = 1.0  # s for the kernel to close the files of a killed hub
_QUIET = 1.0  # s without output after the exit; then the output counts as complete
_ENDLESS = 5.0  # s after the exit to follow output of processes that are still there
_GONE = 2.0  # s for Wait to return after the bundle was removed
_PIECE = 4096  # bytes of input in a message


class TooSlowError(ShimError):
    """The hub disconnected this client because it read too slowly."""


async def attach_as_member(
    task: Task, stdio: Stdio, place: Path, *, stdin: bool, keys: bytes, shim_pid: int = 0
) -> Exited | None:
    """Copy the output of ``task`` and our input until the task exits or ``keys`` are typed.

    ``stdio`` holds the paths of its fifos, ``place`` is its bundle.  Returns None after
    ``keys``: the task runs on.

    :raises CalledOffError: a signal ended this client.
    :raises InvalidError: the process has a terminal, and our stdin is none.
    :raises WrongStateError: another program reads the output.
    :raises TooSlowError: the reader of our own output was too slow.
    """
    check_input(stdin=stdin, terminal=stdio.terminal)
    terminal = stdio.terminal and stdin
    keys = keys if terminal else b""
    client = _Client(task, stdio, place, KeyFilter(keys), shim_pid)
    async with open_signals() as signals:
        signals.resized = client.resized
        with raw_mode(0) if terminal else nullcontext():
            return await client.stay(stdin=stdin)
    raise AssertionError("open_signals raises when it ends the block")


class _Client:
    def __init__(
        self, task: Task, stdio: Stdio, place: Path, keys: KeyFilter, shim_pid: int
    ) -> None:
        self._task = task
        self._stdio = stdio
        self._place = place
        self._keys = keys
        self._shim_pid = shim_pid
        self._sock: socket.socket | None = None
        self._connected = trio.Event()
        self._sending = trio.Lock()  # the input and the size go through one socket
        self._resized = trio.Event()
        self._active = time.monotonic()
        self._others = 0  # members, without the hub
        self._received = 0  # messages
        self._writing = False
        self._ended = trio.Event()  # set at the end of the output

    async def stay(self, *, stdin: bool) -> Exited | None:
        """Stay attached until the process exits or the keys are typed."""
        exited = None
        with trio.CancelScope() as staying, _open_ends(self._stdio, self._place):
            tasks = [self._follow, self.send_sizes]
            if stdin:
                tasks.append(partial(self._type, staying))
            async with background(*tasks):
                exited = await self._task.wait()
                await self._wait_output()
        return exited

    async def _wait_output(self) -> None:
        """Wait for the output that the process wrote before its exit."""
        limit = trio.current_time() + _ENDLESS
        while not self._ended.is_set():
            before = self._received
            with trio.move_on_after(_QUIET):
                await self._ended.wait()
            quiet = self._received == before or trio.current_time() >= limit
            if quiet and not self._writing:
                return

    # Output

    async def _follow(self) -> None:
        """Connect to a hub, and to its successors, until the output ends."""
        rejoining = False
        while not self._ended.is_set():
            try:
                async with self._joined(self._others if rejoining else 0) as sock:
                    self.join(sock)
                    await self._greet(fresh=not rejoining)
                    await self._listen(sock)
            except NotFoundError:
                if rejoining:  # Wait is about to return
                    await trio.sleep(_GONE)
                raise
            finally:
                self._sock, self._connected = None, trio.Event()
            rejoining = True

    def join(self, sock: socket.socket) -> None:
        """Send to the hub at the other end of ``sock`` from now on."""
        self._sock = sock
        self._connected.set()

    async def _greet(self, *, fresh: bool = False) -> None:
        async with self._sending:
            if self._sock is not None:
                size = own_size() if self._stdio.terminal else None
                await hub.send(self._sock, hub.hello(size, self._active, fresh=fresh))

    async def _listen(self, sock: socket.socket) -> None:
        """Handle messages until the hub closes the connection."""
        with trio.move_on_after(_HUB_TIMEOUT) as waiting:
            message = await hub.receive(sock)
        if waiting.cancelled_caught:
            raise TimedOutError(
                f"cannot attach: the client with pid {peer_of(sock).pid} reads the output and "
                "does not answer; end or continue it, and try again"
            )
        while message:
            kind, data = message[:1], message[1:]
            if kind in (hub.OUT, hub.ERR):
                self._received += 1
                self._writing = True
                await write(1 if kind == hub.OUT else 2, data)
                self._writing = False
            elif kind == hub.NUMBER:
                self._others = int(data)
            elif kind == hub.CUT:
                raise TooSlowError(
                    f"disconnected: more than {hub.BEHIND} bytes of output were unread; "
                    "the container runs on, attach again"
                )
            elif kind == hub.END:
                self._ended.set()
            message = await hub.receive(sock)

    async def resized(self) -> None:
        """Send the new size of our terminal soon; the caller handles signals and must not wait."""
        self._active = time.monotonic()
        self._resized.set()
        await trio.lowlevel.checkpoint()

    async def send_sizes(self) -> None:
        """Send the size of our terminal after each change, until cancelled."""
        while True:
            await self._resized.wait()
            self._resized = trio.Event()
            await self._greet()

    # Input

    async def _type(self, staying: trio.CancelScope) -> None:
        async with aclosing(read_in(0, self._keys)) as pieces:
            async for data in pieces:
                self._active = time.monotonic()
                await self.send_input(data)
        if self._keys.found:
            staying.cancel()

    async def send_input(self, data: bytes) -> None:
        """Send input to the hub in pieces."""
        for start in range(0, len(data), _PIECE):
            await self._send(hub.INPUT + data[start : start + _PIECE])

    async def _send(self, message: bytes) -> None:
        while True:
            await self._connected.wait()
            async with self._sending:
                if self._sock is not None and await hub.send(self._sock, message):
                    return
            await trio.sleep(_PAUSE)  # until the next hub is there

    # The hub

    @asynccontextmanager
    async def _joined(self, others: int) -> AsyncIterator[socket.socket]:
        """Connect to the hub, or become it; the last hub had ``others`` members."""
        deadline = trio.current_time() + _HUB_TIMEOUT
        while True:
            with hub.try_lock(self._place) as locked:
                if locked:
                    async with self._as_hub(others - 1) as sock:
                        yield sock
                    return
            if (called := hub.call(self._place)) is not None:
                with _closing(called):
                    yield called
                return
            if trio.current_time() >= deadline:
                raise TimedOutError(
                    f"cannot attach: another client holds {self._place / hub.LOCK} and does not "
                    "listen; end it"
                )
            await trio.sleep(_PAUSE)

    @asynccontextmanager
    async def _as_hub(self, others: int) -> AsyncIterator[socket.socket]:
        await self._wait_alone()
        resize = self._resize if self._stdio.terminal else None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with _closing(ours), _open_pipes(self._stdio) as pipes:
            async with hub.open_hub(self._place, pipes, resize) as center:
                own = center.admit(theirs, own=True)

                async def pump() -> None:
                    await center.wait_members(others)
                    await center.pump()

                async with background(partial(center.converse, own), pump):
                    yield ours

    async def _resize(self, width: int, height: int) -> None:
        with suppress(ShimError):  # the process has just exited
            await self._task.resize(width, height)

    async def _wait_alone(self) -> None:
        """Wait until no other program reads the output.

        :raises WrongStateError: one still does after ``_LEAVING`` seconds.
        """
        deadline = trio.current_time() + _LEAVING
        lock = str(self._place / hub.LOCK)
        while readers := readers_of(
            self._stdio.stdout, except_for=(os.getpid(), self._shim_pid), knowing=lock
        ):
            if trio.current_time() >= deadline:
                names = ", ".join(f"{reader.name} (pid {reader.pid})" for reader in readers)
                raise WrongStateError(
                    f"cannot attach: {names} reads the output of {self._task.id} and would "
                    "lose bytes; attach with its own client"
                )
            await trio.sleep(_PAUSE)


@contextmanager
def _closing(sock: socket.socket) -> Iterator[None]:
    try:
        yield
    finally:
        trio.lowlevel.notify_closing(sock)
        sock.close()


@contextmanager
def _open_ends(stdio: Stdio, place: Path) -> Iterator[None]:
    """Keep the fifos open without reading, so that their content outlives a hub."""
    with ExitStack() as stack:
        stack.callback(os.close, hub.open_lock(place))
        for path in _outputs(stdio):
            stack.callback(os.close, _open_output(path))
        yield


@contextmanager
def _open_pipes(stdio: Stdio) -> Iterator[Pipes]:
    """Open our ends of the output without waiting for the other ends."""
    with ExitStack() as stack:
        outputs = []
        for path in _outputs(stdio):
            fd = _open_output(path)
            stack.callback(os.close, fd)
            outputs.append(fd)
        pipes = Pipes(stdio, outputs[0], outputs[1] if len(outputs) > 1 else None)
        stack.callback(pipes.close_stdin)
        yield pipes


def _outputs(stdio: Stdio) -> list[str]:
    paths = [stdio.stdout] if stdio.terminal else [stdio.stdout, stdio.stderr]
    return list(dict.fromkeys(path for path in paths if path))


def _open_output(path: str) -> int:
    """Open a fifo to read.

    :raises NotFoundError: ``path`` does not exist.
    :raises InvalidError: ``path`` is not a fifo.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as exc:
        raise NotFoundError(f"cannot open the output {path}: {exc.strerror}") from None
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidError(f"cannot attach to the output {path}: it is not a fifo")
    return fd
