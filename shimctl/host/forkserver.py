"""Fork servers, seen from outside: which there are, how to end one, how to have one early.

A fork server is the warm parent of trio shims, an optimisation that comes and
goes by itself; see :mod:`shim.launcher`, which has the rule for whom to trust.
A conversation is two packets: a word, and one JSON object.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import trio

from shim import identity, launcher, names
from shim.errors import InvalidError, ShimError, TimedOutError, UnavailableError
from shim.linux import sockets
from shim.text import explain
from shim.version import VERSION
from shimctl.host.cgroups import join
from shimctl.host.interpreter import Interpreter, search_path

# Seconds for an answer, for a server's end, and for its beginning.
_ANSWER_TIMEOUT = 5.0
_STOP_TIMEOUT = 5.0
_START_TIMEOUT = 10.0
_POLL_INTERVAL = 0.02
_MAX_ANSWER = 1 << 16  # bytes of an answer
_PEERCRED = struct.Struct("iII")  # pid, uid, gid


class Health(Enum):
    """Whether a fork server can be used."""

    UP = "up"
    STALE = "stale"
    SILENT = "silent"
    UNTRUSTED = "untrusted"


@dataclass(frozen=True, slots=True)
class Server:
    """One socket of a fork server, and who answers there.

    ``pid`` is 0 if nobody does; ``idle`` is in seconds without a shim, 0 for no
    limit.  ``ours`` says that shims started from here, as we are, would use it.
    """

    socket: str
    health: Health
    pid: int = 0
    daemons: int = 0
    idle: float = 0.0
    ours: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Warmed:
    """A fork server that answers; ``started`` is false if it did before."""

    socket: str
    pid: int
    started: bool


async def list_servers() -> list[Server]:
    """Look at every fork server's socket.

    Those that others could have put there are reported, and not talked to.

    :raises InvalidError: TRIO_SHIM_FORKSERVER_DIR can be no directory of sockets.
    """
    _check_environment()
    directory, own = identity.directory(), identity.socket_path()
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208 - names make a launcher's paths
    except (FileNotFoundError, NotADirectoryError):
        names = []
    # What begins with a dot is a server that is about to be one.
    paths = (f"{directory}/{name}" for name in names if not name.startswith("."))
    found = [await _inspect(path, own) for path in paths]
    # A directory that is not to be trusted never has a socket of ours.
    if not any(server.ours for server in found) and (reason := _reason_for_no_server(own)):
        found.append(Server(own, Health.UNTRUSTED, ours=True, problem=reason))
    return found


def _reason_for_no_server(own: str) -> str:
    """Say why shims started from here leave no fork server behind; empty if they do."""
    if not own:
        return "this process has a system call filter, so its shims use no fork server"
    try:
        return launcher.distrust(own)
    except FileNotFoundError:
        return ""


def _check_environment() -> None:
    if problem := identity.directory_problem(os.environ.get("TRIO_SHIM_FORKSERVER_DIR", "")):
        raise InvalidError(f"{problem}; correct it or unset it")


async def _inspect(path: str, own: str) -> Server:
    found = partial(Server, path, ours=path == own)
    try:
        if reason := launcher.distrust(path):
            return found(Health.UNTRUSTED, problem=reason)
        pid, answer = await _request(path, b"status")
        return found(
            Health.UP, pid=pid, daemons=int(answer["daemons"]), idle=float(answer["idle"])
        )
    except (FileNotFoundError, UnavailableError):
        return found(Health.STALE, problem="nobody listens there any more")
    except (ShimError, OSError, KeyError, TypeError, ValueError) as exc:
        return found(Health.SILENT, problem=explain(exc))


async def _request(path: str, command: bytes) -> tuple[int, dict[str, Any]]:
    """Say one word to a fork server; return its pid and what it answers.

    :raises UnavailableError: nobody listens there.
    :raises TimedOutError: it does not answer.
    :raises InvalidError: it is another user's, or answers no JSON object.
    """
    with trio.move_on_after(_ANSWER_TIMEOUT):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        with trio.socket.from_stdlib_socket(sock) as connection:
            # With a full backlog there is no event to wait for.
            while not sockets.try_connect(sock, f"unix://{path}"):  # noqa: ASYNC110
                await trio.sleep(sockets.PAUSE)
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
            pid, uid, _ = _PEERCRED.unpack(raw)
            if uid != os.geteuid():
                raise InvalidError(f"{path} is served by user {uid}")
            await connection.send(command)
            data = await connection.recv(_MAX_ANSWER)
        answer = json.loads(data)
        if not isinstance(answer, dict):
            raise InvalidError(f"{path} answered {data[:40]!r}")
        return pid, answer
    raise TimedOutError(f"{path} did not answer in {_ANSWER_TIMEOUT:g} s")


async def stop_servers() -> list[Server]:
    """End every fork server that can be trusted; return them once they are gone.

    Their shims live on, under init.

    :raises ShimError: one of them is still there; the others are gone.
    """
    stopped, problems = [], []
    for server in await list_servers():
        if server.health is Health.STALE or not os.path.lexists(server.socket):
            continue
        try:
            if server.health is not Health.UP:
                raise UnavailableError(server.problem)
            await _stop(server)
        except (ShimError, OSError, ValueError) as exc:
            problems.append(f"{server.socket}: {explain(exc)}")
        else:
            stopped.append(server)
    if problems:
        raise ShimError(f"a fork server could not be stopped: {'; '.join(problems)}")
    return stopped


async def _stop(server: Server) -> None:
    if not server.pid:
        raise UnavailableError("it is in another pid namespace; stop it from there")
    try:
        process = os.pidfd_open(server.pid)
    except ProcessLookupError:
        return
    try:
        with suppress(UnavailableError):  # it has gone by itself meanwhile
            await _request(server.socket, b"stop")
        with trio.move_on_after(_STOP_TIMEOUT):
            await trio.lowlevel.wait_readable(process)
            return
    finally:
        os.close(process)
    raise TimedOutError(
        f"process {server.pid} did not end in {_STOP_TIMEOUT:g} s; kill {server.pid}"
    )


async def warm(*, like: int = 0) -> Warmed:
    """Leave a fork server behind for shims that are started as we are; wait until it answers.

    ``like`` is a process whose cgroup we join first, since a fork server is
    only used from its own.

    :raises NotFoundError: there is no such process.
    :raises InvalidError: it is in other namespaces than we, or what is in the
        server's place is not to be trusted.
    :raises ShimError: it failed.
    """
    _check_environment()
    if like:
        join(like)
    path = identity.socket_path()
    if not path:
        raise InvalidError("no fork server: this process has a system call filter")
    if pid := await _pid_at(path):
        return Warmed(path, pid, started=False)
    child, errors = _spawn()
    try:
        with trio.move_on_after(_START_TIMEOUT):
            while True:
                ended = _has_ended(child)
                if pid := await _pid_at(path):
                    return Warmed(path, pid, started=pid == child)
                if ended:
                    error = _last_error_line(errors) or "it left without a word"
                    raise ShimError(f"the fork server did not start: {error}")
                await trio.sleep(_POLL_INTERVAL)
        _kill(child)
    finally:
        os.close(errors)
    raise TimedOutError(f"the fork server did not answer in {_START_TIMEOUT:g} s, and was ended")


async def _pid_at(path: str) -> int:
    """Return who serves ``path``; 0 if nobody does."""
    try:
        if reason := launcher.distrust(path):
            raise InvalidError(f"no fork server: {reason}")
        return (await _request(path, b"status"))[0]
    except (FileNotFoundError, UnavailableError):
        return 0


def _spawn() -> tuple[int, int]:
    """Start a fork server in a session of its own; return its pid, and where it complains.

    In this interpreter and from this package, so that it is the one for our like.
    """
    package = str(Path(launcher.__file__).absolute().parent)
    here = Interpreter(sys.executable, tuple(search_path()), package, VERSION)
    code = here.code("shim.launcher", named=True)
    errors, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        child = os.posix_spawn(
            sys.executable,
            [sys.executable, "-IS", "-c", code, names.EXECUTABLE, "forkserver"],
            os.environ,
            setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, writer, 2),
            ],
        )
    except BaseException:
        os.close(errors)
        raise
    finally:
        os.close(writer)
    return child, errors


def _has_ended(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG)[0] == child


def _kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)  # its pid is its own until we have waited for it
    os.waitpid(child, 0)


def _last_error_line(errors: int) -> str:
    """Return the last line of what was written; empty for nothing."""
    text = b""
    while select.select([errors], [], [], 0)[0] and (chunk := os.read(errors, _MAX_ANSWER)):
        text += chunk
    return text.decode(errors="replace").strip().rpartition("\n")[2]
