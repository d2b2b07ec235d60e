"""Sends copies of a daemon's fds to the fork server, which keeps them for a replacement.

The part of the fork server that keeps the fds is the keeper, :mod:`shim.start.keeper`.
The daemon never blocks on it: a stopped keeper must not stop a daemon.
:mod:`shim.recovery.outbox` queues the messages that the channel does not accept.  If too
many are queued, the daemon logs a warning and closes the channel: from then on its death ends
its containers.

If the keeper ends, the daemon logs a warning, too, and goes on as before, but sends nothing.
When there is a new fork server, it registers with that one (:mod:`shim.recovery.registering`),
and sends copies of all fds.
"""

from __future__ import annotations

from array import array
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from shim import log
from shim.errors import ShimError
from shim.linux.fifos import Fd
from shim.linux.peers import peer_of
from shim.names import NO_KEEPER
from shim.recovery import messages
from shim.recovery.inherited import DAEMON
from shim.recovery.messages import (
    CLAIMED,
    END,
    EXIT,
    GIVE,
    MAX_MESSAGE,
    PUT,
    SERVING,
    decode,
    encode,
)
from shim.recovery.originals import Originals
from shim.recovery.outbox import Outbox
from shim.recovery.registering import Search

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from shim.recovery.reports import Reports

# Seconds for the keeper to answer.
_ANSWER = 5.0


class Deposit:
    """Copies of this daemon's fds, by name, in another process.

    ``channel`` is a connected SOCK_SEQPACKET socket, owned from now on, None if there is no
    keeper yet.  Run :meth:`run` as a task.

    ``server`` is the path of the fork server's socket, "" to give the deposit up at the end of
    the keeper.  Without a channel and a server no method sends or remembers anything.
    ``fds``, which stay open as long as this process, and ``inherited``, which others close, are
    with the keeper already.  ``starter`` is the name of the executable of a fork server that
    this daemon may start there, "" if it may not.
    """

    def __init__(
        self,
        channel: socket.socket | None = None,
        server: str = "",
        fds: Mapping[str, int] | None = None,
        inherited: Mapping[str, int] | None = None,
        starter: str = "",
    ) -> None:
        self._outbox = Outbox(self._lose, self.give_up)
        self.server = server
        self.starter = starter
        self._is_active = channel is not None or bool(server)
        self._originals = Originals()
        self._lost = trio.Event()
        self._answers: dict[str, trio.Event] = {}
        self._exits: dict[str, tuple[int, int] | None] = {}
        self._reports: Reports | None = None
        self._ends = False  # the keeper ends on purpose
        self._search: Search | None = None  # for the next keeper
        self.keeper = 0  # its pid, also of one that has ended
        self._dropped: set[int] = set()  # keepers that have ended, or dropped this daemon
        self._borrow(fds or {})
        self._originals.copy(inherited or {})
        if channel is not None:
            self.keeper = peer_of(channel).pid
            self._outbox.open(channel)

    @property
    def is_active(self) -> bool:
        """Whether states and fds are kept, or will be when there is a keeper again."""
        return self._is_active

    @property
    def is_kept(self) -> bool:
        """Whether a keeper has copies, so that a killed daemon is replaced."""
        return self._outbox.channel is not None

    @property
    def problem(self) -> str:
        """Why no keeper has copies, "" if one has or none is to have."""
        if not self._is_active or self._outbox.channel is not None:
            return ""
        return (self._search.problem if self._search is not None else "") or NO_KEEPER

    def put(self, fds: Mapping[str, int]) -> None:
        """Send copies of ``fds``; each replaces an earlier copy of the same name."""
        if not self._is_active or not fds:
            return
        self._originals.copy(fds)
        self._put(fds)

    def lend(self, fds: Mapping[str, int]) -> None:
        """Send copies of ``fds`` as :meth:`put`; these stay open until they are dropped.

        An fd is dropped before it is closed: another file may get its number, and the next
        keeper would get that file.
        """
        if self._is_active:
            self._borrow(fds)
            self._put(fds)

    def use_own(self, fds: Mapping[str, int]) -> None:
        """Keep no copies of ``fds``, inherited ones that stay open until they are dropped."""
        if self._is_active:
            self._borrow(fds)

    def _borrow(self, fds: Mapping[str, int]) -> None:
        for name, fd in fds.items():
            self._originals.borrow(name, Fd(fd))

    def _put(self, fds: Mapping[str, int]) -> None:
        if self._outbox.channel is None:
            return
        self._outbox.send_drops()
        for names in messages.split(list(fds)):
            self._outbox.send(encode(PUT, *names), [fds[name] for name in names])

    def put_accepted(self, listener: socket.socket, names: Sequence[str], *others: int) -> int:
        """Accept a connection; lend it and ``others`` at once; return its fd.

        :raises BlockingIOError: the listener is non-blocking, and no client waits.
        """
        fds = array("i", [-1, *others])
        self._outbox.accept(listener, encode(PUT, *names), fds)
        if self._is_active:
            self._borrow(dict(zip(names, fds, strict=True)))
        return fds[0]

    def drop(self, *names: str) -> None:
        """Ask the keeper to close the copies, within some turns of the event loop."""
        if self._reports is not None:
            self._reports.drop(names)
        self._originals.drop(names)
        self._outbox.drop(names)

    def leave(self, *names: str) -> None:
        """Forget these fds, which are closed next; the keeper's copies stay."""
        self._originals.drop(names)

    def hold(self, fds: Mapping[str, Fd], instead: Mapping[str, int] | None = None) -> None:
        """Send copies as :meth:`put`, and drop each when its ``Fd`` is closed.

        ``instead`` has fds to send in the place of those with the same names.
        """
        if not self._is_active:
            return
        for name, fd in fds.items():
            self.follow(name, fd)
        self._originals.copy(instead or {})
        self._put({name: fd.number for name, fd in fds.items()} | dict(instead or {}))

    def follow(self, name: str, fd: Fd) -> None:
        """Drop the copy ``name`` of the file of ``fd`` when that is closed."""
        if self._is_active:
            self._originals.borrow(name, fd)
            fd.closing = lambda: self.drop(name)

    async def exit_of(self, name: str) -> tuple[int, int] | None:
        """Return the wait status of the process of the pidfd ``name``, and its time in ns.

        None if neither the keeper nor a server of ``reports`` knows it: the process is not
        a child of either, or its parent has ended.
        """
        if (known := await self._ask(name)) is None and self._reports is not None:
            known = await self._reports.exit_of(name)
        return known

    def use(self, reports: Reports) -> None:
        """Ask the servers of ``reports`` for exits, too."""
        self._reports = reports

    async def _ask(self, name: str) -> tuple[int, int] | None:
        if self._outbox.channel is None:
            return None
        with trio.move_on_after(_ANSWER):
            await self._answered(name)
        self._answers.pop(name, None)
        return self._exits.pop(name, None)

    async def _answered(self, name: str) -> None:
        if name not in self._answers:
            self._answers[name] = trio.Event()
            self._outbox.send(encode(EXIT, name), [])
            self._outbox.bell.ring()
        await self._answers[name].wait()

    async def wait_answer(self) -> bool:
        """Wait until the keeper answers, or has ended; return whether it is still there."""
        lost = self._lost
        try:
            if self._outbox.channel is None:
                return False
            await self._answered("")  # no process has that name
        finally:
            self._answers.pop("", None)
        return not lost.is_set()

    async def wait_lost(self) -> None:
        """Wait for the end of the keeper."""
        if self._outbox.channel is not None:
            await self._lost.wait()

    def claimed(self) -> None:
        """Report that the keeper has the pidfds of all inherited processes.

        Until this report, and for at most five seconds, the keeper reaps no other orphan of
        the killed daemon.  So no pid in a runtime's pid file can belong to another process.
        """
        self._outbox.send(encode(CLAIMED), [])
        self._outbox.bell.ring()

    def serving(self) -> None:
        """Report that this process, a replacement, is about to accept calls."""
        self._outbox.send(encode(SERVING), [])

    def fileno(self) -> int:
        """Return the fd of the channel, -1 without a keeper."""
        return -1 if self._outbox.channel is None else self._outbox.channel.fileno()

    def give(self, to: int) -> bool:
        """Ask the keeper to send all copies to the socket ``to``, and then ``replace``.

        Return False if the channel does not accept messages now.
        """
        self._outbox.send_drops()
        if not self._outbox.offer(encode(GIVE), [to]):
            return False
        self._outbox.bell.ring()
        return True

    async def run(self, start: Callable[[], Awaitable[bool]] | None = None) -> None:
        """Send the queued messages, and receive the keeper's answers.

        After the end of the keeper, register with the next one.  ``start`` is as for
        :meth:`Search.run`; it is not called if the keeper has ended on purpose.
        """
        while self._is_active:
            if self._outbox.channel is None:
                await self._register(None if self._ends else start)
                continue
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._outbox.run)
                await self._receive()
                nursery.cancel_scope.cancel()

    async def _register(self, start: Callable[[], Awaitable[bool]] | None) -> None:
        self._dropped.add(self.keeper)
        self._search = Search(self.server, self._dropped)
        try:
            found = await self._search.run(start)
        except (ShimError, OSError) as exc:
            self.give_up(exc)
            return
        if not self._is_active:  # closed meanwhile
            found.channel.close()
            return
        self._ends = False
        self._lost = trio.Event()
        self._search = None
        self.keeper = found.keeper
        self._outbox.open(found.channel)
        # The keeper replaces a daemon of which it has this one, so that is the last.
        names = sorted(fds := self._originals.all(), key=DAEMON.__eq__)
        self._put({name: fds[name] for name in names})
        self._outbox.bell.ring()
        if self._outbox.channel is not None:
            log.info("another fork server keeps the files of this shim", server=self.keeper)

    def close(self) -> None:
        """Close the channel, on purpose: the keeper drops all copies."""
        self._outbox.send_last(encode(END))
        self._close()

    def _close(self) -> None:
        self._is_active = False
        self._originals.close()
        self._close_channel()

    def _close_channel(self) -> None:
        self._outbox.close()
        self._lost.set()
        for answered in self._answers.values():
            answered.set()

    async def _receive(self) -> None:
        while (channel := self._outbox.channel) is not None:
            try:
                await trio.lowlevel.wait_readable(channel)
                # It may be closed by now: a task of the same turn has found that the keeper ended.
                data = channel.recv(MAX_MESSAGE)
            except BlockingIOError:
                continue
            except (OSError, trio.ClosedResourceError):
                data = b""
            if not data:
                self._lose()
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        verb, words = decode(data)
        if verb == END:
            self._ends = True
        if verb == EXIT and words and (answered := self._answers.get(words[0])) is not None:
            self._exits[words[0]] = (int(words[1]), int(words[2])) if words[2:] else None
            answered.set()

    def _take_last(self, channel: socket.socket) -> None:
        """Read what the keeper sent before it ended.

        An empty answer may come before that, see :mod:`shim.linux.fdpassing`, and an error of
        the socket if the keeper ended with unread messages: ECONNRESET.
        """
        with suppress(OSError):
            while True:
                try:
                    data = channel.recv(MAX_MESSAGE)
                except ConnectionResetError:
                    continue  # the kernel reports it once
                if not data:
                    return
                self._take(data)

    def _lose(self) -> None:
        """Go on without a keeper, until there is another one."""
        if self._outbox.channel is None:
            return
        self._take_last(self._outbox.channel)
        if not self.server:
            self.give_up("the keeper has ended")
            return
        if self._originals.missing:
            self.give_up("the keeper has ended, and an fd is missing for the next one")
            return
        self._close_channel()
        log.warning(
            "a death of this shim ends its containers until there is a new fork server",
            reason="the keeper has ended",
        )

    def give_up(self, reason: object) -> None:
        """Close the channel, and log the ``reason``: no replacement follows this daemon."""
        if not self._is_active:
            return
        log.warning(
            "a death of this shim ends its containers from now on: its fork server "
            "does not keep its files",
            reason=reason,
        )
        self._close()
