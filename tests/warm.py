"""Commands of the project's own programs, as forks of a process that has imported them.

A new interpreter takes 0.3 s of processor time to import what ``shimctl ps`` needs; a fork
takes 0.02 s.  :mod:`tests.warmserver` lists the attributes in which such a process equals a new
one.  A test starts a new one where its subject is the start or the interpreter.  While a test
has changed an attribute of its own process that the server does not take from a request, such
as a limit or a cgroup, each process is a new one.

The server of a program is started at its first call, and ends with this process.
"""

from __future__ import annotations

import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from tests.warmserver import ENVIRONMENT, MAX_REQUEST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ROOT = Path(__file__).parents[1]
DEPENDENCIES = "tests.dependencies"
_PADDING = "-" * 2048  # bytes of a command line that /proc shows
# A variable whose bytes /proc shows as the environment of a child.
_ROOM = {"SHIM_TEST_WARM": "-" * ENVIRONMENT}
_CHUNK = 1 << 16
_START = 120.0  # s for a server to import everything, and to fork, on a busy machine
# The variables that the interpreter reads when it starts.
_INTERPRETER = ("PYTHON", "LC_", "LANG", "COVERAGE")
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


_servers: dict[tuple[str, frozenset[tuple[str, str]]], Server] = {}
_lock = threading.Lock()


def pytest_sessionfinish() -> None:
    """End the servers."""
    close()


def close() -> None:
    """End the servers; the next call starts another one."""
    with _lock:
        for key in list(_servers):
            _servers.pop(key).close()


def _server(package: str, settings: dict[str, str]) -> Server:
    key = package, frozenset(settings.items())
    with _lock:
        if key not in _servers:
            _servers[key] = Server(package, settings)
        return _servers[key]


def start(
    module: str,
    argv: Sequence[str],
    fds: Sequence[int],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    package: str = "",
) -> Process | subprocess.Popen[bytes]:
    """Start ``python -m module argv`` with ``fds`` as its standard streams.

    ``package`` is what has been imported already, if that is not ``module``.  With
    ``tests.dependencies`` the module is that of the build in the directory ``cwd``.
    It is a new interpreter if the server cannot start it, see :meth:`Server.start`.
    """
    environ = dict(os.environ if env is None else env)
    settings = {name: environ[name] for name in environ if name.startswith(_INTERPRETER)}
    # A server finds the modules of this checkout, as the call does with this variable.
    if settings.get("PYTHONPATH") == str(ROOT) or package == DEPENDENCIES:
        del settings["PYTHONPATH"]
    server = _server(package or module, settings)
    process = server.start([module, *argv], fds, cwd or Path(), environ)
    if process is not None:
        return process
    stdin, stdout, stderr = fds
    command = [sys.executable, "-m", module, *argv]
    return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, env=env)


class Popen:
    """Start ``python -m module argv`` with the streams of :class:`subprocess.Popen`."""

    def __init__(
        self,
        module: str,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
        text: bool = False,
    ) -> None:
        theirs: list[int] = []
        opened: list[int] = []
        files: list[IO[Any] | None] = []
        try:
            for number, given in enumerate((stdin, stdout, stderr)):
                file = None
                if given == subprocess.PIPE:
                    reader, writer = os.pipe()
                    fd, ours = (writer, reader) if number else (reader, writer)
                    opened.append(fd)
                    mode = "r" if number else "w"
                    file = os.fdopen(ours, mode if text else mode + "b")
                elif given == subprocess.DEVNULL:
                    fd = os.open(os.devnull, os.O_RDWR)
                    opened.append(fd)
                elif given == subprocess.STDOUT:
                    fd = theirs[1]
                else:
                    fd = number if given is None else given
                theirs.append(fd)
                files.append(file)
            self._process = start(module, argv, theirs, env=env)
        finally:
            for fd in opened:
                os.close(fd)
        self.stdin, self.stdout, self.stderr = files
        for name in ("pid", "poll", "wait", "kill", "terminate", "send_signal"):
            setattr(self, name, getattr(self._process, name))

    pid: int
    poll: Callable[[], int | None]
    wait: Callable[[float | None], int]
    kill: Callable[[], None]
    terminate: Callable[[], None]
    send_signal: Callable[[int], None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                with suppress(BrokenPipeError):
                    file.close()
        self._process.wait()

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        """Close the input, and return the rest of both outputs.

        :raises subprocess.TimeoutExpired: they have not ended within ``timeout`` s.
        """
        found: list[Any] = [None, None]

        def read(number: int, file: IO[Any]) -> None:
            with file:
                found[number] = file.read()

        if self.stdin is not None:
            with suppress(BrokenPipeError):
                self.stdin.close()
        outputs = [(n, file) for n, file in enumerate((self.stdout, self.stderr)) if file]
        readers = [threading.Thread(target=read, args=pair, daemon=True) for pair in outputs]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self._process.args, timeout or 0)
        self._process.wait(timeout)
        return found[0], found[1]


def run(
    module: str,
    argv: Sequence[str],
    *,
    stdin: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    package: str = "",
    timeout: float,
) -> subprocess.CompletedProcess[str]:
    """Do the same with pipes, and wait for its end and for the end of its output.

    :raises subprocess.TimeoutExpired: it has been killed after ``timeout`` s.
    """
    done = run_bytes(
        module,
        argv,
        stdin=stdin.encode(),
        cwd=cwd,
        env=env,
        package=package,
        timeout=timeout,
    )
    texts = [
        text.decode().replace("\r\n", "\n").replace("\r", "\n")
        for text in (done.stdout, done.stderr)
    ]
    return subprocess.CompletedProcess(done.args, done.returncode, *texts)


def run_bytes(
    module: str,
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    package: str = "",
    timeout: float,
) -> subprocess.CompletedProcess[bytes]:
    """Do the same with bytes."""
    deadline = time.monotonic() + timeout
    ends = [os.pipe() for _ in range(3)]
    with (
        open(ends[0][1], "wb", buffering=0) as given,
        open(ends[1][0], "rb", buffering=0) as out,
        open(ends[2][0], "rb", buffering=0) as err,
    ):
        theirs = (ends[0][0], ends[1][1], ends[2][1])
        try:
            process = start(module, argv, theirs, cwd=cwd, env=env, package=package)
        finally:
            for fd in theirs:
                os.close(fd)
        try:
            output, errors = _communicate(given, stdin, (out, err), deadline)
            process.wait(max(0.0, deadline - time.monotonic()))
        except BaseException as exc:
            process.kill()
            process.wait()
            if isinstance(exc, TimeoutError):
                raise subprocess.TimeoutExpired(process.args, timeout) from None
            raise
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def _communicate(
    given: IO[bytes], data: bytes, outputs: Sequence[IO[bytes]], deadline: float
) -> list[bytes]:
    """Write ``data`` and close ``given``; return all of each output."""
    texts = dict.fromkeys(outputs, b"")
    os.set_blocking(given.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(given, selectors.EVENT_WRITE)
        for file in outputs:
            selector.register(file, selectors.EVENT_READ, file)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready and time.monotonic() >= deadline:
                raise TimeoutError
            for key, _ in ready:
                if key.fileobj is given:
                    with suppress(BrokenPipeError):
                        data = data[os.write(key.fd, data) :]
                        if data:
                            continue
                elif more := os.read(key.fd, _CHUNK):
                    texts[key.data] += more
                    continue
                selector.unregister(key.fileobj)
                if key.fileobj is given:
                    given.close()
    return list(texts.values())
