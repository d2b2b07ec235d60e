"""The fork server's loop: it accepts connections and gives each call to a child.

The process forks, so it has one thread and no event loop: it polls its socket,
a pipe that signals write to, and the connections that have sent no request yet.
No client can block it.  :mod:`shim.start.launcher` describes the conversation.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from shim import log
from shim.errors import ExistsError
from shim.linux.fdpassing import receive_fds
from shim.linux.peers import peer_of
from shim.recovery.registering import ring
from shim.start import children, givenup, heap, launcher, stopped
from shim.start.children import Call, is_closed, run_call
from shim.start.codestamp import code_stamp
from shim.start.flags import deaths_limit, idle_time
from shim.start.forking import fork_child
from shim.start.keeper import Keeper
from shim.start.mover import refusal
from shim.start.pending import PendingConnections
from shim.start.replacement import become_replacement
from shim.start.serversocket import ServerSocket
from shim.start.spare import Spare
from shim.start.warmup import warm_up

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds after the last connection until a spare child is forked: the fork must not
# compete for processors with simultaneous calls, or with the runtime command that
# follows a ``start``.
SPARE_DELAY = 0.05
_MAX_REQUEST = 1 << 16  # bytes of a request
# Calls for which the server runs the code of a ``start`` before it forks: CPython 3.12
# specialises code that has run twice.  A daemon takes 0.15 MiB less.
_CALLS = 3


class Server:
    """A fork server that listens on ``path``; ``name`` is the executable's name."""

    def __init__(self, path: str, name: str) -> None:
        self._path = path
        self._name = name
        self._identity = os.path.basename(path)  # noqa: PTH119 - a plain string
        self._daemons: set[int] = set()
        self._stamp = code_stamp()
        self._idle, _ = idle_time(os.environ)
        self._last_activity = time.monotonic()
        self._stopped = False  # by a request or as outdated: it stays for the daemons it keeps
        self._ended = False  # by a signal
        self._holds_orphans = False
        self._socket = ServerSocket(path)
        self._wake: tuple[int, ...] = ()
        self._poll = select.poll()
        directory = os.path.dirname(path)  # noqa: PTH120 - a plain string
        deaths, _ = deaths_limit(os.environ)
        self._keeper = Keeper(self._poll, partial(givenup.report, directory), deaths)
        self._pending = PendingConnections(self._poll)
        self._calls: deque[tuple[socket.socket, Call]] = deque()
        self._spare = Spare(self._identity)

    def serve(self, listening: Callable[[], None]) -> int:
        """Warm up, listen and serve until a signal, ``stop`` or the idle time; return 0.

        ``listening`` is called when the server listens.  If another server listens on the
        socket already, it is called too, and this returns at once.
        """
        # The warm-up runs a daemon, which would take a signal to the server for one to itself.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        warm_up(os.path.dirname(self._path))  # noqa: PTH120 - a plain string
        for _ in range(_CALLS):
            children.warm_up()
        heap.arrange()
        try:
            self._socket.listen()
        except ExistsError:
            listening()
            return 0
        stopped.remove_dead(os.path.dirname(self._path))  # noqa: PTH120 - a plain string
        self._last_activity = time.monotonic()  # no caller could connect before
        self._wake = wake, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._poll.register(self._socket, select.POLLIN)
        self._poll.register(wake, select.POLLIN)
        listening()
        ring(self._path)
        while not self._is_over():
            has_ended = False
            for fd, _ in self._poll.poll(0 if self._calls else self._poll_timeout()):
                if fd == wake:
                    os.read(wake, 4096)
                    has_ended = True
                elif fd == self._socket.fileno():
                    self._accept()
                elif not self._keeper.receive(fd):
                    self._read_request(fd)
            self._pending.close_expired()
            self._keeper.expire()
            if has_ended or (self._holds_orphans and not self._keeper.has_claims):
                self._reap()
            if self._keeper:
                self._replace_ended()
            if self._calls:
                self._run_next()
            elif self._spare.is_wanted and time.monotonic() >= self._last_activity + SPARE_DELAY:
                self._fork_spare()
        self._keeper.take_leave()
        return 0

    def close(self) -> None:
        """Stop listening, remove the socket, and refuse all calls."""
        self._refuse()
        self._pending.close()
        if self._socket.is_open:
            with suppress(KeyError):  # it is not registered yet
                self._poll.unregister(self._socket)
            self._socket.close()

    def _stop(self) -> None:
        """Refuse all calls, and leave the name of the socket to the next server.

        While there is something to keep, requests for the status are answered at another path.
        """
        self._stopped = True
        self._refuse()
        if not self._socket.is_open or self._socket.path != self._path:
            return
        if not (self._keeper and self._socket.rename()):
            self.close()

    def _refuse(self) -> None:
        """End the spare child and the queued calls."""
        self._spare.drop()
        self._spare.is_wanted = False
        while self._calls:
            _close(*self._calls.popleft())

    def _end(self, *_: object) -> None:
        self._ended = True

    def _is_over(self) -> bool:
        """Return whether the server is to exit; if only the keeper is to stay, refuse calls."""
        if not (self._stopped or self._is_idle()):
            return self._ended
        if self._keeper and not self._ended:
            self._stop()
            return False
        return True

    def _poll_timeout(self) -> float | None:
        """Return the milliseconds until the next deadline, None if there is no deadline."""
        waits = [SPARE_DELAY] if self._spare.is_wanted else []
        if self._idle and not self._count and not self._stopped:
            waits.append(self._idle)
        times = [self._last_activity + seconds for seconds in waits]
        times += self._pending.deadlines
        times += self._keeper.deadlines
        return max(0.0, min(times) - time.monotonic()) * 1000 + 1 if times else None

    @property
    def _count(self) -> int:
        """The number of daemons: children, and guests of the keeper."""
        return len(self._daemons) + self._keeper.guests

    def _is_idle(self) -> bool:
        if self._count or not self._idle:
            if self._keeper.guests:
                self._last_activity = time.monotonic()
            return False
        return time.monotonic() >= self._last_activity + self._idle

    def _reap(self) -> None:
        """Reap ended daemons, and the orphans of daemons: the server is their subreaper."""
        options = os.WEXITED | os.WNOHANG
        self._holds_orphans = False
        try:
            while not self._keeper.has_claims:
                if (info := os.waitid(os.P_ALL, 0, options | os.WNOWAIT)) is None:
                    return
                if self._reap_child(info.si_pid) or self._keeper.reap(info.si_pid):
                    continue
                if self._keeper.has_dying:
                    break
                os.waitid(os.P_PID, info.si_pid, options)
        except ChildProcessError:
            return
        # The replacement of a daemon may find the pid of an orphan in a file.
        self._holds_orphans = True
        for pid in filter(None, (*self._daemons, self._spare.pid)):
            self._reap_child(pid)
        if not (self._keeper.has_claims or self._keeper.has_dying):
            self._reap()  # the one that could claim them has ended: no event follows

    def _reap_child(self, pid: int) -> bool:
        """Reap ``pid`` if it has ended and is a daemon or the spare child; return whether."""
        is_spare = pid == self._spare.pid
        if not is_spare and pid not in self._daemons:
            return False
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
            return False
        if is_spare:
            self._spare.drop()
        else:
            self._daemons.discard(pid)
            self._last_activity = time.monotonic()
            self._keeper.ended(pid, status)
        return True

    def _replace_ended(self) -> None:
        """Fork the replacements that are due."""
        for kept in self._keeper.due():
            try:
                work = partial(become_replacement, kept.fds, self._path, kept.parent, kept.claim)
                pid, channel = fork_child(work, *kept.fds.values())
            except OSError as exc:
                log.debug("cannot fork the replacement of a shim", error=exc)
                self._keeper.postpone(kept)
            else:
                self._daemons.add(pid)
                self._keeper.attach(pid, channel, kept)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection = self._socket.accept()
                self._last_activity = time.monotonic()
                self._spare.is_wanted = not self._spare.pid and not self._stopped
                self._pending.add(connection, self._last_activity)

    def _read_request(self, fd: int) -> None:
        """Read the request on connection ``fd``, and queue it if a child must run it."""
        if (connection := self._pending.take(fd)) is None:
            return
        try:
            call = self._handle_request(connection)
        except (OSError, ValueError) as exc:
            log.debug("cannot read a request to the fork server", error=exc)
            call = None
        if call is None:
            connection.close()
        else:
            self._calls.append((connection, call))

    def _run_next(self) -> None:
        """Give the oldest queued call to a child, unless its caller has hung up."""
        connection, call = self._calls.popleft()
        try:
            if not is_closed(connection):
                self._assign(connection, call)
        except OSError as exc:
            log.debug("cannot give a call to a child of the fork server", error=exc)
        finally:
            _close(connection, call)

    def _handle_request(self, connection: socket.socket) -> Call | None:
        """Reply to a request of the own user and group; return the call of a ``run``."""
        pid, uid, gid = peer_of(connection)
        if (uid, gid) != (os.geteuid(), os.getegid()):
            return None
        data, fds, flags = receive_fds(connection, _MAX_REQUEST, 3)
        try:
            verb, *argv = [os.fsdecode(word) for word in data.split(b"\0")]
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                return None
            if self._stopped and verb not in ("status", "stop"):
                return None
            if verb == "run" and len(fds) == 2 and argv:
                connection.send(b"heard")
                call = Call(connection.fileno(), pid, argv, *fds)
                fds = []
                return call
            if verb == "keep" and len(fds) == 2 and argv:
                if not self._is_current():
                    return None
                channel, mover = fds
                reason = refusal(pid, mover, argv[0])
                connection.send(json.dumps({"error": reason} if reason else {}).encode())
                if not reason:
                    fds = []
                    self._keeper.welcome(mover, socket.socket(fileno=channel))
            elif verb == "register" and len(fds) == 2 and argv:
                if not self._is_current():
                    return None
                channel, pidfd = fds
                reason = refusal(pid, pidfd, argv[0])
                if self._keeper.keeps(pid):
                    reason = "it is kept already"
                connection.send(json.dumps({"error": reason} if reason else {}).encode())
                if not reason:
                    fds = []
                    self._keeper.register(pid, pidfd, socket.socket(fileno=channel))
            elif verb == "status":
                connection.send(json.dumps(self._state()).encode())
            elif verb == "stop":
                self._stop()
                connection.send(json.dumps(self._state()).encode())
            return None
        finally:
            for fd in fds:
                os.close(fd)

    def _state(self) -> dict[str, object]:
        """Return the reply to ``status``.

        ``keeps`` is the number of daemons that are replaced if they are killed, ``reports``
        of those that have moved away, and of which exits are reported to their fork server.
        """
        return {
            "pid": os.getpid(),
            "daemons": self._count,
            "idle": self._idle,
            "stopped": self._stopped,
            "keeps": self._keeper.count,
            "reports": self._keeper.reported,
            "socket": self._socket.path,
        }

    def _is_current(self) -> bool:
        """Return whether the files on disk are still those of the loaded code.

        Otherwise stop to listen: the caller makes a new server, and must not find this one.
        """
        if code_stamp() == self._stamp:
            return True
        self._stop()
        return False

    def _assign(self, connection: socket.socket, call: Call) -> None:
        if not self._is_current():
            return
        try:
            child = self._use_spare(call) or self._fork_for(call)
        except OSError as exc:
            connection.send(
                f"the fork server is not used: it cannot fork: {exc.strerror}".encode()
            )
            return
        connection.send(b"child %d" % child)

    def _use_spare(self, call: Call) -> int:
        """Send ``call`` to the spare child; return its pid, or 0 if none can run it."""
        if (spare := self._spare.use(call)) is None:
            return 0
        self._attach(call, spare.pid, spare.sock)
        return spare.pid

    def _fork_for(self, call: Call) -> int:
        """Fork a child that runs ``call``; return its pid."""
        pid, channel = fork_child(partial(run_call, call, self._identity), *call.fds)
        self._attach(call, pid, channel)
        return pid

    def _attach(self, call: Call, pid: int, channel: socket.socket) -> None:
        """Take messages of the child ``pid`` if it may become a daemon."""
        if call.argv[-1] == "start":
            self._daemons.add(pid)
            self._keeper.attach(pid, channel)
        else:
            channel.close()

    def _fork_spare(self) -> None:
        with suppress(OSError):
            self._spare.fork()
            self._touch_pages()

    def _touch_pages(self) -> None:
        """Write to the pages that a request writes to: the fork has shared them all."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            theirs.send(b"none")
            self._handle_request(ours)
            is_closed(ours)
        launcher.is_stuck(os.getpid())
        code_stamp()


def _close(connection: socket.socket, call: Call) -> None:
    connection.close()
    os.close(call.stdin)
    os.close(call.caller)
