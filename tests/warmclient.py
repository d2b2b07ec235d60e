"""A server of forks as a test sees it: :mod:`tests.warm` starts one for each program.

:mod:`tests.warmserver` is the code of the server.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.warmserver import ENVIRONMENT, MAX_REQUEST

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[1]
_PADDING = "-" * 2048  # bytes of a command line that /proc shows
# A variable whose bytes /proc shows as the environment of a child.
_ROOM = {"SHIM_TEST_WARM": "-" * ENVIRONMENT}
_START = 120.0  # s for a server to import everything, and to fork, on a busy machine
_KEPT = ("PATH", "HOME", "TMPDIR")
# Attributes that a child takes from this thread, and a child of a server does not.
# Source: proc_pid_status(5).
_STATUS = (
    *("Uid:", "Gid:", "Groups:", "NSpgid:", "NSsid:", "SigBlk:", "SigIgn:", "Cap"),
    *("NoNewPrivs:", "Seccomp", "Cpus_allowed:", "Mems_allowed:"),
)
_FILES = ("limits", "cgroup", "oom_score_adj", "personality")
_NAMESPACES = ("mnt", "net", "pid_for_children", "ipc", "uts", "user", "cgroup")


class Process:
    """A child of a server; the methods are those of :class:`subprocess.Popen`."""

    def __init__(self, args: Sequence[str], replies: socket.socket) -> None:
        self.args = args
        self.returncode: int | None = None
        self._replies = replies
        replies.settimeout(_START)
        data, fds, _, _ = socket.recv_fds(replies, 16, 1)
        assert fds, "the server has ended"
        self.pid, self._pidfd = int(data), fds[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has ended, and nothing has waited for it
                signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """Return the exit code as :meth:`wait` does; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, or the negative number of the signal that ended it.

        :raises subprocess.TimeoutExpired: it has not ended within ``timeout`` s.
        """
        if self.returncode is None:
            if not select.select([self._pidfd], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(int(self._replies.recv(16)))
            os.close(self._pidfd)
            self._replies.close()
        return self.returncode


def _attributes() -> list[str]:
    """Return the attributes of this thread that its children have, and those of a server not."""
    thread = "/proc/thread-self"
    found = [str(os.getpriority(os.PRIO_PROCESS, 0)), str(os.sched_getscheduler(0))]
    found += [os.readlink(f"{thread}/ns/{name}") for name in _NAMESPACES]  # noqa: PTH115
    for name in _FILES:
        with open(f"{thread}/{name}") as file:
            found.append(file.read())
    with open(f"{thread}/status") as file:
        return [*found, *(line for line in file if line.startswith(_STATUS))]


class Server:
    """A process that has imported the package ``package``, and forks for each call."""

    def __init__(self, package: str, settings: dict[str, str]) -> None:
        self._attributes = _attributes()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environ = {name: os.environ[name] for name in _KEPT if name in os.environ}
        # Its standard streams are pipes, as those of its children: they keep the objects.
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.warmserver",
                    str(theirs.fileno()),
                    package,
                    _PADDING,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Of two builds of a package, a call's is the first one of its path.
                cwd=settings.get("PYTHONPATH", "").partition(":")[0] or ROOT,
                env=environ | settings | _ROOM,
                pass_fds=[theirs.fileno()],
            )

    def close(self) -> None:
        """End it; its children go on."""
        self._socket.close()
        _, errors = self._process.communicate(timeout=_START)
        assert not errors, errors.decode()

    def start(
        self, words: Sequence[str], fds: Sequence[int], directory: Path, environ: Mapping[str, str]
    ) -> Process | None:
        """Start a module and its arguments, with ``fds`` as its standard streams.

        Return None if it is too long, or if its attributes would not be those of this thread.
        """
        if _attributes() != self._attributes:
            return None
        if (
            sum(len(os.fsencode(name + value)) + 2 for name, value in environ.items())
            > ENVIRONMENT
        ):
            return None
        status = Path("/proc/self/status").read_text()
        umask = int(status.partition("\nUmask:")[2].split()[0], 8)
        request = {"argv": list(words), "environ": dict(environ), "umask": umask}
        data = json.dumps(request).encode()
        if len(data) > MAX_REQUEST:
            return None
        place = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                socket.send_fds(self._socket, [data], [theirs.fileno(), place, *fds])
            return Process([sys.executable, "-m", *words], ours)
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(place)
