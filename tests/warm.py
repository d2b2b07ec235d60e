"""Commands of the project's own programs, as forks of a process that has imported them.

A new interpreter takes 0.3 s of processor time to import what ``shimctl ps`` needs; a fork
takes 0.02 s.  :mod:`tests.warmserver` lists the attributes in which such a process equals a new
one.  A test starts a new one where its subject is the start or the interpreter.  While a test
has changed an attribute of its own process that the server does not take from a request, such
as a limit or a cgroup, each process is a new one.

The server of a program is started at its first call, and ends with this process.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from tests.warmclient import ROOT, Process, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

DEPENDENCIES = "tests.dependencies"
_CHUNK = 1 << 16
# The variables that the interpreter reads when it starts.
_INTERPRETER = ("PYTHON", "LC_", "LANG", "COVERAGE")

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
