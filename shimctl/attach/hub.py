"""The hub: one client reads the fifos of a process and copies the output to all clients.

A fifo gives each byte to one reader.  Therefore one of the clients is the hub.
It holds a lock in the process's bundle, reads the fifos and listens on a socket
in the bundle.  The other clients are its members: they receive copies of the
output through the socket and send their input to it.  When the hub exits, the
kernel releases the lock and a member becomes the hub.  Unread output is still in
the fifos then, and copied output is still in the sockets.

A message is one packet.  Its first byte is its kind:

    o e   to members: bytes of stdout, of stderr
    n     to members: the number of members without the hub; always the first message
    c     to members: the hub closes the connection, because the member reads too slowly
    x     to members: the output has ended
    i     from members: bytes of input
    h     from members: the member's state as JSON: size, active, fresh

The kernel keeps at most ``BEHIND`` unread bytes for a member.  A member that
reads more slowly is disconnected, so that neither the process nor the other
members wait for it.  A single client may be slow: then the process waits.  The
terminal has the size of the member that was active last, that is, the last one
that attached, sent input or was resized.

Source: fifo(7), unix(7), flock(2); docker's attach for the redraw for a late client.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import wait_readable, wait_writable

from shim import jsontext
from shim.errors import NotFoundError
from shim.linux import fdpassing
from shim.linux.peers import check_server
from shim.scope import background
from shimctl import locking
from shimctl.attach.relay import CHUNK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from shimctl.attach.relay import Pipes

OUT, ERR, NUMBER, CUT, END, INPUT, HELLO = (bytes([b]) for b in b"oencxih")
BEHIND = 1 << 20  # unread bytes that the kernel keeps for a member
_LAST_WORD = 1 << 16  # more bytes of buffer, for the message CUT
_SO_SNDBUFFORCE = 32  # Source: asm-generic/socket.h; Python has no name for it
_REUNION = 1  # s for the members of a dead hub to connect to the next one
LOCK, SOCKET = "attach.lock", "attach.sock"

Size = tuple[int, int]  # width and height, in characters


@dataclass(slots=True, eq=False)
class Member:
    """A client of the process.  ``active`` is the time of its last activity, CLOCK_MONOTONIC.

    ``sock`` is None for the hub's own client if it needs no copies.
    """

    sock: socket.socket | None
    scope: trio.CancelScope
    size: Size | None = None
    active: float = 0


class Hub:
    """The client that reads the fifos.  Use :func:`open_hub`."""

    def __init__(
        self, pipes: Pipes, resize: Callable[[int, int], Awaitable[object]] | None
    ) -> None:
        self.own = Member(None, trio.CancelScope())
        self._pipes = pipes
        self._resize = resize  # None without a terminal
        self._members = [self.own]
        self._ended = False
        self._copying, self._sizing = trio.Lock(), trio.Lock()
        self._size: Size | None = None
        self._changed = trio.Event()

    def broadcast(self, kind: bytes, data: bytes = b"") -> None:
        """Send a message to every member without waiting for any."""
        for member in list(self._members):
            if member.sock is None:
                continue
            try:
                member.sock.send(kind + data)
            except BlockingIOError:
                _set_buffer(member.sock, BEHIND + _LAST_WORD)
                with suppress(OSError):
                    member.sock.send(CUT)
                self._lose(member)
            except OSError:
                self._lose(member)

    def admit(self, sock: socket.socket, *, own: bool = False) -> Member:
        """Add a member that receives copies on ``sock``; call :meth:`converse` next."""
        sock.setblocking(False)
        _set_buffer(sock, BEHIND)
        member = Member(sock, trio.CancelScope())
        self._members.append(member)
        if own:
            self._members.remove(self.own)
            self.own = member
        self._count()
        return member

    def _lose(self, member: Member) -> None:
        member.scope.cancel()
        with suppress(ValueError):
            self._members.remove(member)

    def _count(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        self.broadcast(NUMBER, str(self._others()).encode())

    def _others(self) -> int:
        return sum(member is not self.own for member in self._members)

    async def wait_members(self, count: int) -> None:
        """Wait until there are ``count`` other members, at most ``_REUNION`` seconds."""
        with trio.move_on_after(_REUNION):
            while self._others() < count:
                await self._changed.wait()

    async def pump(self) -> None:
        """Read the process's output for the members until it ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, OUT, self._pipes.stdout)
            if self._pipes.stderr is not None:
                nursery.start_soon(self._pump, ERR, self._pipes.stderr)
        self._ended = True
        self.broadcast(END)

    async def _pump(self, kind: bytes, source: int) -> None:
        while True:
            await wait_readable(source)
            # Stdout and stderr take turns: both wait for room in the same socket, and the
            # room is for one message.
            async with self._copying:
                await self._wait_room()
                try:
                    data = os.read(source, CHUNK)
                except BlockingIOError:
                    continue
                if not data:
                    return
                # No wait between read and send: a hub that exits loses no byte.
                self.broadcast(kind, data)

    async def _wait_room(self) -> None:
        """Wait for the only client to read; return when a second client arrives."""
        while self._members == [self.own] and self.own.sock is not None:
            sock = self.own.sock
            with trio.CancelScope() as waiting:
                async with background(partial(_cancel_after, self._changed, waiting)):
                    with suppress(trio.ClosedResourceError):
                        await wait_writable(sock)
                    return

    async def serve(self, listener: socket.socket) -> None:
        """Accept members until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await wait_readable(listener)
                with suppress(BlockingIOError, ConnectionAbortedError):
                    member = self.admit(listener.accept()[0])
                    nursery.start_soon(self.converse, member)

    async def converse(self, member: Member) -> None:
        """Handle the messages of a member until it disconnects; then close its socket."""
        assert member.sock is not None
        try:
            with member.scope:
                while message := await receive(member.sock):
                    await self._take(member, message)
        finally:
            self._lose(member)
            trio.lowlevel.notify_closing(member.sock)
            member.sock.close()
        self._count()
        await self._fit()

    async def _take(self, member: Member, message: bytes) -> None:
        kind, content = message[:1], message[1:]
        if kind == INPUT:
            await self.use(member)
            await self._pipes.write_stdin(content)
        elif kind == HELLO:
            if self._ended:
                self.broadcast(END)
            member.size, member.active, fresh = read_hello(content)
            await self._fit(redraw=fresh and member.size is not None)

    async def use(self, member: Member) -> None:
        """Record that a member is active; the terminal gets its size."""
        member.active = time.monotonic()
        await self._fit()

    async def resize_own(self, size: Size | None) -> None:
        """Record the size of this client's own terminal."""
        self.own.size = size
        await self.use(self.own)

    async def _fit(self, *, redraw: bool = False) -> None:
        """Give the process's terminal the size of the member that was active last.

        ``redraw`` sets another size for a moment: full-screen programs then paint
        the whole screen.
        """
        sized = [member for member in self._members if member.size]
        if self._resize is None or not sized:
            return
        async with self._sizing:
            size = max(sized, key=lambda member: member.active).size
            assert size is not None
            if size == self._size and not redraw:
                return
            self._size = width, height = size
            if redraw:
                await self._resize(width, height - 1 if height > 1 else 2)
            await self._resize(width, height)


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def read_hello(content: bytes) -> tuple[Size | None, float, bool]:
    """Parse HELLO; malformed content counts as empty, since the member may be newer."""
    try:
        state: dict[str, Any] = jsontext.loads(content)
        size = state.get("size")
        pair = (int(size[0]), int(size[1])) if size else None
        return pair, float(state.get("active", 0)), bool(state.get("fresh"))
    except (ValueError, TypeError, LookupError, AttributeError):
        return None, 0, False


def hello(size: Size | None, active: float, *, fresh: bool) -> bytes:
    """Encode HELLO; a ``fresh`` member has not received any output yet."""
    state = {"size": size, "active": active, "fresh": fresh}
    return HELLO + json.dumps(state).encode()


async def receive(sock: socket.socket) -> bytes:
    """Return the next message, or nothing once the peer has closed and all is read."""
    while True:
        await wait_readable(sock)
        # The kernel reports ECONNRESET once, before the messages that are still queued.
        with suppress(BlockingIOError, ConnectionResetError):
            return fdpassing.receive(sock, CHUNK + 1)


async def send(sock: socket.socket, message: bytes) -> bool:
    """Send a message when the buffer has room; return False if the peer has closed."""
    while True:
        try:
            await wait_writable(sock)
            sock.send(message)
        except BlockingIOError:
            continue
        except (OSError, trio.ClosedResourceError):
            return False
        return True


def _set_buffer(sock: socket.socket, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
    except PermissionError:  # the kernel then caps the size at net.core.wmem_max
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


# Becoming the hub, or finding it


def open_lock(place: Path) -> int:
    """Open the file that the hub locks; every client keeps it open.

    :raises NotFoundError: the directory does not exist (any more).
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(place / LOCK, flags, 0o600)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(
            f"cannot open {place / LOCK}: the container has been deleted"
        ) from None


def try_lock(place: Path) -> AbstractContextManager[bool]:
    """Try to lock ``place`` for the block; yield whether that succeeded.

    :raises NotFoundError: the directory does not exist (any more).
    """
    return locking.try_lock(open_lock(place))


def call(place: Path) -> socket.socket | None:
    """Connect to the hub of ``place``; return None if no hub listens yet."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    try:
        with _named(place) as name:
            sock.connect(name)
        check_server(sock, str(place))
    except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


@asynccontextmanager
async def open_hub(
    place: Path, pipes: Pipes, resize: Callable[[int, int], Awaitable[object]] | None
) -> AsyncIterator[Hub]:
    """Run the hub for the block.  Needs the lock; ``resize`` is None without a terminal."""
    hub = Hub(pipes, resize)
    with _listening(place) as listener:
        async with background(partial(hub.serve, listener)):
            yield hub


@contextmanager
def _listening(place: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.setblocking(False)
        path = place / SOCKET
        path.unlink(missing_ok=True)  # the socket of a dead hub: we hold the lock
        umask = os.umask(0o177)
        try:
            with _named(place) as name:
                listener.bind(name)
        finally:
            os.umask(umask)
        listener.listen(16)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _named(place: Path) -> Iterator[str]:
    """Give a short path of the socket, through an fd: bundles have long paths."""
    fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)
