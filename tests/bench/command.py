"""Run one command as a manager does, and time it: spawn, read to the end, wait.

Blocking, because nothing else may share the processor with the timed process; every wait has a
bound.  The time ends when the output has ended and the
process too, as in containerd, which waits for both.
"""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

LIMIT = 30.0  # seconds a command may take


class CommandError(Exception):
    """A command failed, or did not end; its output is in the text."""


@dataclass(frozen=True, slots=True)
class Done:
    seconds: float
    output: bytes


@dataclass(slots=True)
class Running:
    """A spawned command, which :meth:`finish` ends the ownership of."""

    argv: list[str]
    pid: int
    began: float
    reader: int | None

    def finish(self, limit: float = LIMIT) -> Done:
        """Wait for the end.

        :raises CommandError: it failed, or took over ``limit`` seconds and was killed.
        """
        deadline = self.began + limit
        output = b""
        pidfd = os.pidfd_open(self.pid)
        try:
            while self.reader is not None and _readable(self.reader, deadline):
                chunk = os.read(self.reader, 65536)
                if not chunk:
                    break
                output += chunk
            ended = _readable(pidfd, deadline)
            if not ended:
                os.killpg(self.pid, signal.SIGKILL)  # its children, too
            status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            seconds = time.perf_counter() - self.began
        finally:
            os.close(pidfd)
            if self.reader is not None:
                os.close(self.reader)
        if not ended or status:
            why = f"failed ({status})" if ended else f"did not end in {limit:g} s"
            text = output.decode(errors="replace").strip()
            raise CommandError(f"{' '.join(self.argv)} {why}: {text}")
        return Done(seconds, output)


def _readable(fd: int, deadline: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, deadline - time.perf_counter()) * 1000))


def spawn(
    argv: list[str],
    *,
    env: Mapping[str, str],
    cwd: str | None = None,
    capture: bool = True,
    errors: bool = False,
) -> Running:
    """Start ``argv`` in a new process group, with /dev/null on stdin.

    stdout is read if ``capture``, and stderr with it if ``errors``.
    """
    reader, writer = os.pipe() if capture else (None, os.open(os.devnull, os.O_WRONLY))
    null = os.open(os.devnull, os.O_RDWR)
    actions = [
        (os.POSIX_SPAWN_DUP2, null, 0),
        (os.POSIX_SPAWN_DUP2, writer, 1),
        (os.POSIX_SPAWN_DUP2, writer if errors else null, 2),
    ]
    home = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        if cwd is not None:  # posix_spawn has no argument for it
            os.chdir(cwd)
        began = time.perf_counter()
        pid = os.posix_spawnp(argv[0], argv, env, file_actions=actions, setpgroup=0)
    except BaseException:
        if reader is not None:
            os.close(reader)
        raise
    finally:
        os.fchdir(home)
        for fd in (home, null, writer):
            os.close(fd)
    return Running(argv, pid, began, reader)


def run(
    argv: list[str],
    *,
    env: Mapping[str, str],
    cwd: str | None = None,
    capture: bool = True,
    errors: bool = False,
) -> Done:
    """Spawn and finish.

    :raises CommandError: it failed or took too long.
    """
    return spawn(argv, env=env, cwd=cwd, capture=capture, errors=errors).finish()


def reap(pid: int, limit: float = LIMIT) -> None:
    """Wait for ``pid``, a child or an adopted one.

    :raises CommandError: it does not end within ``limit`` seconds.
    """
    pidfd = os.pidfd_open(pid)
    try:
        if not _readable(pidfd, time.perf_counter() + limit):
            raise CommandError(f"process {pid} did not end in {limit:g} s")
    finally:
        os.close(pidfd)
    os.waitpid(pid, 0)
