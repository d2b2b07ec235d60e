"""The keeper: the part of the fork server that keeps copies of daemons' fds and replaces daemons.

The server is the parent of its daemons, and of the orphans of those that have ended.  With
``survive``, a daemon sends copies of its fds to the keeper.  The messages
(:mod:`shim.recovery.messages`) come through a channel that a daemon has since its fork, so
no other process can send any, or that it sends when it registers after the end of its own
server: then it is a guest.  When the daemon is killed, the server forks a replacement, which
inherits the fds.

Nothing here waits for a daemon.  Messages wait in the channel until the daemon rings its bell or
ends, so most changes of a container do not wake the server.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

from shim.linux.fdpassing import send_fds
from shim.linux.processes import is_ending
from shim.recovery import messages
from shim.recovery.inherited import DAEMON, LISTENER, MOVER, MOVING, REPORTS
from shim.recovery.messages import END, PUT, REPLACE, encode
from shim.recovery.moving import MOVED
from shim.recovery.turn import Claim
from shim.start import orphans
from shim.start.channels import Channels
from shim.start.guests import Guests, is_ending_daemon
from shim.start.keptfds import Kept, close
from shim.start.reporters import Reporters

if TYPE_CHECKING:
    import select
    from collections.abc import Callable, Iterable

    from shim.start.orphans import Holder

# Seconds within which the deaths of a daemon are counted.
PERIOD = 60.0
# Seconds for a replacement to claim the processes of its predecessor.
_CLAIM = 5.0
# Seconds from the end of a daemon's channel to its own end.  A thread that waits for a disk
# that hangs can delay the latter without a limit.
_ENDING = 1.0
# Seconds between two attempts to fork a replacement, and number of attempts.
_FORK_PAUSE, _FORK_ATTEMPTS = 0.1, 100


class Keeper:
    """The fds of all daemons of one fork server, whose ``poll`` waits for their channels.

    ``report`` is called with a daemon that is given up and the reason.  ``deaths`` is the
    number of deaths within PERIOD seconds at which a daemon is given up, 0 for no limit.
    """

    def __init__(
        self, poll: select.poll, report: Callable[[Kept, str], None], deaths: int
    ) -> None:
        self._report = report
        self._deaths = deaths
        self._all: set[Kept] = set()
        self._daemons: dict[int, Kept] = {}
        self._guests = Guests(poll)
        self._channels = Channels(poll, self._obey, self._end_channel, self._forget)
        self._timed: set[Kept] = set()  # those with a deadline
        self._reporters = Reporters(poll, self.reap)

    def __bool__(self) -> bool:
        """Whether a daemon has left fds or may do so, or exits of one that moved are reported."""
        return bool(self._all) or any(self._reporters)

    @property
    def count(self) -> int:
        """The number of daemons that have left fds."""
        return sum(bool(kept.fds) for kept in self._all)

    @property
    def reported(self) -> int:
        """The number of daemons that have moved away, and of which exits are reported."""
        return len({reporter.daemon for reporter in self._reporters})

    @property
    def deadlines(self) -> list[float]:
        """The times at which :meth:`expire` has something to do."""
        return [kept.deadline for kept in self._timed]

    def attach(self, pid: int, channel: socket.socket, kept: Kept | None = None) -> None:
        """Take messages of the daemon ``pid`` from ``channel``, which is owned from now on.

        ``kept`` is that of the daemon which the daemon replaces.
        """
        if kept is None:
            kept = Kept()
        else:
            self._set(kept, claims_until=time.monotonic() + _CLAIM, fork_at=0.0)
        kept.pid = pid
        self._drop(kept, (MOVING, MOVER))  # for the first one only
        self._all.add(kept)
        self._daemons[pid] = kept
        self._channels.open(kept, channel)

    def welcome(self, mover: int, channel: socket.socket) -> None:
        """Take the fds of a daemon that moves here; both arguments are owned from now on.

        ``mover`` is its pidfd.  Its replacement is due when all fds are here.
        """
        # It may have been here before, and this server is the parent of its processes then.
        kept = Kept(mover=mover, serves=False, has_orphans=True)
        self._all.add(kept)
        self._channels.open(kept, channel)

    def register(self, pid: int, pidfd: int, channel: socket.socket) -> None:
        """Take the fds of the daemon ``pid``, no child of this process, whose server has ended.

        ``pidfd``, by which its end is found, and ``channel`` are owned from now on.  It is
        replaced once it has left all fds, of which ``daemon`` is the last.
        """
        self.attach(pid, channel)
        self._guests.add(self._daemons[pid], pidfd)

    @property
    def guests(self) -> int:
        """The number of daemons that are no children of this process."""
        return len(self._guests)

    def keeps(self, pid: int) -> bool:
        """Return whether the process ``pid`` is a daemon that leaves fds here."""
        return pid in self._daemons

    def receive(self, fd: int) -> bool:
        """Take one message of the channel ``fd``, or all of the channel with the bell ``fd``.

        It may also be the pidfd of a guest, which has ended.  Return False if it is none of these.
        """
        if (kept := self._guests.ended(fd)) is not None:
            self._follow_end(kept, on_purpose=False, counts=not kept.gives)
        elif not self._channels.receive(fd):
            return self._reporters.receive(fd)
        self._channels.read_waiting()
        return True

    def _end_channel(self, kept: Kept) -> None:
        self._channels.close(kept)
        if kept.pid and kept.fds and is_ending_daemon(kept):
            # A daemon's fds are closed before its parent can reap it.
            self._set(kept, ended_at=time.monotonic() + _ENDING)
        else:
            self._forget(kept)

    def _obey(self, kept: Kept, verb: bytes, names: list[str], fds: list[int]) -> bool:
        """Carry out a message; return False if it is malformed.

        ``fds`` are owned by ``kept`` after a ``put`` or ``bell``, and closed after a ``give``.
        """
        match verb, names:
            case messages.PUT, _:
                self._drop(kept, names)
                kept.fds.update(zip(names, fds, strict=True))
            case messages.DROP, _:
                self._drop(kept, names)
            case messages.BELL, [] if kept.bell < 0 and kept.pid:
                self._channels.hang(kept, fds[0])
            case messages.READ, []:
                self._channels.others_wait = True
            case messages.EXIT, [_]:
                assert kept.channel is not None
                orphans.answer(kept, kept.channel, names, lambda pid: self.reap(pid, kept))
            case messages.CLAIMED, []:
                self._set(kept, claims_until=0.0)
            case messages.SERVING, []:
                kept.serves = True
            case messages.END, []:
                self._forget(kept)
            case messages.GIVE, []:
                kept.gives = True
                kept.claim = Claim.new(kept.fds.get(DAEMON, -1))
                with socket.socket(fileno=fds[0]) as to:
                    self._give(kept, to)
            case messages.REPLACE, [] if kept.mover >= 0:
                self._release_mover(kept)
            case _:
                return False
        return True

    def _release_mover(self, kept: Kept) -> None:
        """Make the replacement of a daemon that moves here due; it gets the channel."""
        kept.fds |= {MOVING: self._channels.detach(kept), MOVER: kept.mover}
        kept.mover = -1
        if {DAEMON, LISTENER} <= kept.fds.keys():
            kept.claim = Claim.new(kept.fds[DAEMON])
            self._set(kept, fork_at=time.monotonic())
        else:
            self._forget(kept)

    @staticmethod
    def _drop(kept: Kept, names: Iterable[str]) -> None:
        for name in names:
            if (fd := kept.fds.pop(name, -1)) >= 0:
                close(fd)
                kept.exits.pop(name, None)

    def reap(self, pid: int, *askers: Holder) -> bool:
        """Reap the orphan ``pid``, a zombie, if its pidfd is here; return whether it is.

        ``askers`` get its exit, too, if they have its pidfd.
        """
        kept = (kept for kept in self._all if kept.has_orphans)
        return orphans.reap(pid, {*askers, *kept, *self._reporters})

    @property
    def has_claims(self) -> bool:
        """Whether a replacement may claim orphans that are not known yet: none is reaped.

        It may be due only.
        """
        return any(kept.claims_until or kept.fork_at for kept in self._timed)

    @property
    def has_dying(self) -> bool:
        """Whether a daemon of this process exits, and is no zombie yet.

        The kernel gives an orphan to the next subreaper as soon as the daemon begins to exit
        (find_new_reaper() in kernel/exit.c).  Closing the daemon's files takes milliseconds.
        """
        return any(is_ending(pid) for pid, kept in self._daemons.items() if kept.guest < 0)

    def ended(self, pid: int, status: int) -> None:
        """Replace the daemon ``pid``, a child that was reaped, unless its exit status is 0."""
        if (kept := self._daemons.get(pid)) is not None:
            moved = os.waitstatus_to_exitcode(status) == MOVED
            self._follow_end(kept, on_purpose=status == 0, counts=not moved)

    def _follow_end(self, kept: Kept, *, on_purpose: bool, counts: bool) -> None:
        self._channels.drain(kept)
        if kept not in self._all:
            return  # its last message was END
        if on_purpose or not kept.has_served:
            self._forget(kept)
        else:
            self._bury(kept, counts=counts)

    def take_leave(self) -> None:
        """Tell all daemons that this server ends on purpose."""
        self._channels.send_to_all(encode(END))

    def expire(self) -> None:
        """Handle the deadlines that have passed."""
        now = time.monotonic()
        for kept in [kept for kept in self._timed if kept.deadline <= now]:
            if 0 < kept.claims_until <= now:
                self._set(kept, claims_until=0.0)
            if 0 < kept.ended_at <= now:
                self._bury(kept)

    def due(self) -> list[Kept]:
        """Return the daemons to replace now; see :meth:`attach`."""
        now = time.monotonic()
        return [kept for kept in self._timed if 0 < kept.fork_at <= now]

    def postpone(self, kept: Kept) -> None:
        """Try the replacement of a daemon again later, since the fork failed."""
        kept.attempts += 1
        if kept.attempts < _FORK_ATTEMPTS:
            self._set(kept, fork_at=time.monotonic() + _FORK_PAUSE)
        else:
            self._give_up(kept, "no process can be forked")

    def _bury(self, kept: Kept, *, counts: bool = True) -> None:
        """Make a replacement due for a daemon that has ended; a move ``counts`` as no death."""
        self._channels.close(kept)
        self._guests.remove(kept)
        self._daemons.pop(kept.pid, None)
        kept.pid = 0
        now = time.monotonic()
        kept.has_orphans = True
        deaths = [one for one in kept.deaths if now - one < PERIOD]
        kept.deaths = [*deaths, now] if counts else deaths
        kept.attempts = 0
        if not {DAEMON, LISTENER} <= kept.fds.keys() or not kept.has_served:
            self._forget(kept)  # it had given no address yet, or another server replaces it
        elif 0 < self._deaths <= len(kept.deaths):
            self._give_up(kept, f"it died {len(kept.deaths)} times in {PERIOD:g} seconds")
        else:
            self._set(kept, claims_until=0.0, ended_at=0.0, fork_at=now)

    def _give_up(self, kept: Kept, reason: str) -> None:
        self._report(kept, reason)
        self._forget(kept)

    def _give(self, kept: Kept, to: socket.socket) -> None:
        """Send copies of the fds to another keeper, without waiting, and end with REPLACE.

        The exits of the daemon's orphans are reported from then on.
        """
        with suppress(OSError):  # it reads too slowly, or has ended: then the move fails
            for names in messages.split(list(kept.fds)):
                fds = [kept.fds[name] for name in names]
                send_fds(to, encode(PUT, *names), fds, socket.MSG_DONTWAIT)
            if kept.reporter is not None:  # of a move that failed
                self._reporters.close(kept.reporter)
            kept.reporter, theirs = self._reporters.open(kept)
            with theirs:
                names_of_reports = (f"{REPORTS}/{number}" for number in count())
                name = next(name for name in names_of_reports if name not in kept.fds)
                send_fds(to, encode(PUT, name), [theirs.fileno()], socket.MSG_DONTWAIT)
            to.send(encode(REPLACE), socket.MSG_DONTWAIT)

    def _forget(self, kept: Kept) -> None:
        """Close all fds of a daemon: its death is the end of its containers from now on.

        If it has moved, those that are needed to report exits stay.
        """
        self._channels.close(kept)
        self._guests.remove(kept)
        if kept.reporter is not None and kept.reporter.is_open:
            self._reporters.leave(kept.reporter)
        else:
            for fd in kept.fds.values():
                close(fd)
            kept.fds.clear()
            kept.exits.clear()
        if kept.mover >= 0:
            os.close(kept.mover)
            kept.mover = -1
        self._daemons.pop(kept.pid, None)
        self._timed.discard(kept)
        self._all.discard(kept)

    def _set(self, kept: Kept, **times: float) -> None:
        for name, value in times.items():
            setattr(kept, name, value)
        if kept.deadline:
            self._timed.add(kept)
        else:
            self._timed.discard(kept)
