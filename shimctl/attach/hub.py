"""Several clients at the fifos of one process: one of them reads, all of them see.

A fifo gives each byte to one reader.  So one of the clients is the hub: it holds
a lock in the process's bundle, reads the fifos, and listens on a socket there,
from which the others, its members, get copies, and to which they send what is
typed.  When the hub goes, however, its lock is free and a member takes it; what
nobody had read is still in the fifos, what was copied still in the sockets.

A message is one packet, and its first byte says what it is:

    o e   to members: bytes of stdout, of stderr
    n     to members: how many they are, the hub not counted; the first they hear
    c     to members: cut off, for not reading
    x     to members: the output has ended
    i     from members: bytes that were typed
    h     from members: who they are now, as JSON: size, active, fresh

What a member has not read yet waits in the kernel, and never more than
``BEHIND`` bytes: a member that reads too slowly is cut off, the process and the
other members wait for nobody.  Only who is alone may be slow.  The terminal has
the size of the member that was active last: that typed, came, or was resized.

Source: fifo(7), unix(7), flock(2); docker's attach for the redraw of who comes late.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import wait_readable, wait_writable

from shim.errors import NotFoundError
from shim.scope import background
from shimctl.attach.relay import CHUNK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from shimctl.attach.relay import Pipes

OUT, ERR, NUMBER, CUT, END, INPUT, HELLO = (bytes([b]) for b in b"oencxih")
BEHIND = 1 << 20  # bytes that the kernel keeps for a member that does not read
_LAST_WORD = 1 << 16  # bytes of room beyond that, to say that it is cut off
_SO_SNDBUFFORCE = 32  # Source: asm-generic/socket.h; Python has no name for it
_REUNION = 1  # s in which the members of a dead hub come to the next
LOCK, _SOCKET = "attach.lock", "attach.sock"

Size = tuple[int, int]  # width and height, in characters


@dataclass(slots=True, eq=False)
class Member:
    """A client.  ``active`` is when it last was, by the clock that all processes share.

    ``sock`` is None for a hub's own client that needs no copies.
    """

    sock: socket.socket | None
    scope: trio.CancelScope
    size: Size | None = None
    active: float = 0


class Hub:
    """The one client that reads.  Use :func:`open_hub`."""

    def __init__(
        self, pipes: Pipes, resize: Callable[[int, int], Awaitable[object]] | None
    ) -> None:
        self.own = Member(None, trio.CancelScope())
        self._pipes = pipes
        self._resize = resize  # None without a terminal
        self._members = [self.own]
        self._ended = False
        self._typing, self._sizing = trio.Lock(), trio.Lock()
        self._size: Size | None = None
        self._changed = trio.Event()

    def tell(self, kind: bytes, data: bytes = b"") -> None:
        """Send a message to every member, and wait for none of them."""
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
        """Begin to send copies to ``sock``; :meth:`converse` must follow."""
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
        self.tell(NUMBER, str(self._others()).encode())

    def _others(self) -> int:
        return sum(member is not self.own for member in self._members)

    async def wait_members(self, count: int) -> None:
        """Wait until the other members are ``count``, but not for long."""
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
        self.tell(END)

    async def _pump(self, kind: bytes, source: int) -> None:
        while True:
            await wait_readable(source)
            await self._wait_room()
            try:
                data = os.read(source, CHUNK)
            except BlockingIOError:
                continue
            if not data:
                return
            # With no wait in between: whoever leaves takes nothing along.
            self.tell(kind, data)

    async def _wait_room(self) -> None:
        """Wait for a member that is alone: as long as it is, nobody else has to."""
        while self._members == [self.own] and self.own.sock is not None:
            sock = self.own.sock
            with trio.CancelScope() as waiting:
                async with background(partial(_cancel_after, self._changed, waiting)):
                    with suppress(trio.ClosedResourceError):
                        await wait_writable(sock)
                    return

    async def serve(self, listener: socket.socket) -> None:
        """Take in whoever comes."""
        async with trio.open_nursery() as nursery:
            while True:
                await wait_readable(listener)
                with suppress(BlockingIOError, ConnectionAbortedError):
                    member = self.admit(listener.accept()[0])
                    nursery.start_soon(self.converse, member)

    async def converse(self, member: Member) -> None:
        """Be there for one member until it leaves; this closes its socket."""
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
            async with self._typing:
                await self._pipes.write_stdin(content)
        elif kind == HELLO:
            if self._ended:
                self.tell(END)
            member.size, member.active, fresh = read_hello(content)
            await self._fit(redraw=fresh and member.size is not None)

    async def use(self, member: Member) -> None:
        """Take note that a member is active: the terminal gets its size."""
        member.active = time.monotonic()
        await self._fit()

    async def resize_own(self, size: Size | None) -> None:
        """Take note of the size of our own terminal."""
        self.own.size = size
        await self.use(self.own)

    async def _fit(self, *, redraw: bool = False) -> None:
        """Give the process's terminal the size of the member that was active last.

        To ``redraw`` is to have another size for a moment, which programs on a
        screen of their own answer by painting all of it.
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
    """Read what a member says of itself; strange words count as none, it may be newer."""
    try:
        said: dict[str, Any] = json.loads(content)
        size = said.get("size")
        pair = (int(size[0]), int(size[1])) if size else None
        return pair, float(said.get("active", 0)), bool(said.get("fresh"))
    except (ValueError, TypeError, LookupError, AttributeError):
        return None, 0, False


def hello(size: Size | None, active: float, *, fresh: bool) -> bytes:
    """Say who we are; ``fresh`` members have seen nothing of the screen yet."""
    said = {"size": size, "active": active, "fresh": fresh}
    return HELLO + json.dumps(said).encode()


async def receive(sock: socket.socket) -> bytes:
    """Wait for the next message; empty when the other side is gone and all is read."""
    while True:
        await wait_readable(sock)
        # ECONNRESET comes before what was sent until then, and once.
        with suppress(BlockingIOError, ConnectionResetError):
            return sock.recv(CHUNK + 1)


async def send(sock: socket.socket, message: bytes) -> bool:
    """Send a message as soon as there is room; say whether the other side was there."""
    while True:
        try:
            await wait_writable(sock)
            sock.send(message)
        except BlockingIOError:
            continue
        except (OSError, trio.ClosedResourceError):
            return False
        return True


def peer_of(sock: socket.socket) -> int:
    """Return the pid of who listens at the other side."""
    return int(struct.unpack("iii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def _set_buffer(sock: socket.socket, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
    except PermissionError:  # then it is as large as the host allows
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


# Who is the hub


def open_lock(place: Path) -> int:
    """Open the file that the hub has locked, and by which clients know each other.

    :raises NotFoundError: the directory is not there, or not any more.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(place / LOCK, flags, 0o600)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{place} is gone, and the container with it") from None


@contextmanager
def try_lock(place: Path) -> Iterator[bool]:
    """Try to become the hub of ``place`` for the block; say whether that worked."""
    fd = open_lock(place)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def call(place: Path) -> socket.socket | None:
    """Connect to the hub of ``place``; None if it does not listen, or not yet."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    try:
        with _named(place) as name:
            sock.connect(name)
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
    """Be the hub for the block.  Needs the lock; ``resize`` is None without a terminal."""
    hub = Hub(pipes, resize)
    with _listening(place) as listener:
        async with background(partial(hub.serve, listener)):
            yield hub


@contextmanager
def _listening(place: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.setblocking(False)
        path = place / _SOCKET
        path.unlink(missing_ok=True)  # a dead one's: the lock is ours
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
    """Give the name of the socket: by way of an fd, as bundles have long paths."""
    fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{_SOCKET}"
    finally:
        os.close(fd)
