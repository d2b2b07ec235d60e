"""The settings of a daemon and the attributes of its process, for its replacement.

A daemon copies most of the attributes from its caller (:mod:`shim.start.children`), which
may have ended when the daemon is killed.  So the daemon saves them with the keeper, as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shim import log
from shim.container.reservations import Reservation
from shim.daemon import Settings
from shim.errors import InvalidError, ShimError
from shim.linux import libc
from shim.linux.fdpassing import send_fds
from shim.recovery import versions
from shim.recovery.inherited import CALLER, DAEMON, LISTENER, LOG
from shim.recovery.messages import PUT, encode
from shim.recovery.slot import StateSlot
from shim.start import daemonize

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shim.start.caller import Caller

_OOM_SCORE = Path("/proc/self/oom_score_adj")


@dataclass(frozen=True, slots=True)
class Profile:
    """The settings and attributes that a replacement takes on, to equal the killed daemon.

    ``answer`` is the output of ``start``.  ``title`` are the words that ``ps`` shows.
    ``limits`` are pairs of the soft and the hard one, by their names in :mod:`resource`.
    """

    settings: Settings
    answer: bytes
    title: list[str]
    level: int
    shim_cgroup: str
    sched_core: bool
    environ: dict[str, str]
    umask: int
    nice: int
    affinity: list[int]
    limits: dict[str, tuple[int, int]]
    oom_score: int

    @property
    def is_apart(self) -> bool:
        """Whether the process has attributes that its fork server did not have."""
        return bool(self.shim_cgroup) or self.sched_core

    @classmethod
    def of_this_process(
        cls,
        settings: Settings,
        answer: bytes,
        title: list[str],
        level: int,
        shim_cgroup: str,
        *,
        sched_core: bool,
    ) -> Profile:
        """Return the profile of this process, a daemon."""
        umask = os.umask(0o077)  # the only way to read it; this process has one thread
        os.umask(umask)
        return cls(
            settings,
            answer,
            title,
            level,
            shim_cgroup,
            sched_core,
            dict(os.environ),
            umask,
            os.getpriority(os.PRIO_PROCESS, 0),
            sorted(os.sched_getaffinity(0)),
            {name: resource.getrlimit(value) for name, value in _LIMITS.items()},
            int(_OOM_SCORE.read_text()),
        )

    def encode(self) -> bytes:
        """Return the text for :meth:`decode`."""
        value = asdict(self) | {"version": versions.DAEMON, "answer": self.answer.hex()}
        return json.dumps(value).encode()

    @classmethod
    def decode(cls, text: bytes) -> Profile:
        """Return the profile in a text of :meth:`encode`.

        :raises InvalidError: the text is malformed, or of another version.
        """
        try:
            value = json.loads(text)
            versions.require_readable("daemon", value.pop("version"))
            settings = value["settings"]
            if settings["first"] is not None:
                settings["first"] = Reservation(**settings["first"])
            value["settings"] = Settings(**settings)
            value["answer"] = bytes.fromhex(value["answer"])
            return cls(**value)
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise InvalidError(f"the state of a daemon is malformed: {exc!r}") from None

    def leave(
        self, channel: socket.socket | None, listener: socket.socket, caller: Caller
    ) -> dict[str, int]:
        """Send the keeper this profile, and the fds that every replacement needs.

        Return those that a new keeper needs, too; they stay open.  ``channel`` is None if
        there is no keeper yet.

        :raises OSError: no fd is left, or the keeper has ended.
        """
        slot = StateSlot.new()
        try:
            slot.write(self.encode())
            fds = {
                DAEMON: slot.fd,
                LISTENER: listener.fileno(),
                LOG: log.fileno(),
                CALLER: caller.connection.fileno(),
            }
            if channel is not None:
                send_fds(channel, encode(PUT, *fds), list(fds.values()), socket.MSG_DONTWAIT)
        except BaseException:
            slot.close()
            raise
        del fds[CALLER]  # the caller ends soon
        return fds

    def apply(self, pids: Iterable[int]) -> None:
        """Give this process, a child of the fork server, the attributes.

        ``pids`` are processes with the daemon's scheduling core, if it has one.
        """
        os.environ.clear()
        os.environ.update(self.environ)
        os.umask(self.umask)
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, self.nice)
        with suppress(OSError):
            os.sched_setaffinity(0, self.affinity)
        for name, (soft, hard) in self.limits.items():
            with suppress(OSError, ValueError):
                resource.setrlimit(_LIMITS[name], (soft, hard))
        daemonize.reset_attributes(self.title)
        for give in (self._set_oom_score, self._join_cgroup):
            try:
                give()
            except (ShimError, OSError) as exc:
                log.warning("cannot give a replacement an attribute of its shim", error=exc)
        if self.sched_core:
            _share_core(pids)
        os.chdir("/")

    def _set_oom_score(self) -> None:
        _OOM_SCORE.write_text(str(self.oom_score))

    def _join_cgroup(self) -> None:
        daemonize.join_cgroup(self.shim_cgroup)


def _share_core(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(OSError):
            libc.share_core_cookie(pid)
            return
    with suppress(OSError):
        libc.create_core_cookie()


_LIMITS = {name: value for name, value in vars(resource).items() if name.startswith("RLIMIT_")}
