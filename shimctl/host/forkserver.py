"""Lists, stops and starts fork servers.

A fork server is a process that forks the daemons of trio shims, so that they start
faster.  The first shim starts one, and it exits when it has been idle for long
enough.  :mod:`shim.start.launcher` has the rule for which servers are trusted.  A client
sends one packet, a word, and receives one packet, a JSON object.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import trio

from shim import names
from shim.errors import InvalidError, ShimError, TimedOutError, UnavailableError
from shim.linux import sockets
from shim.linux.fdpassing import receive
from shim.linux.peers import peer_of
from shim.start import identity, launcher, stopped
from shim.text import explain
from shim.version import VERSION
from shimctl.host.cgroups import join
from shimctl.host.interpreter import Interpreter, search_path

# Seconds for an answer, for the exit of a server, and for its start.
_ANSWER_TIMEOUT = 5.0
_STOP_TIMEOUT = 5.0
_START_TIMEOUT = 10.0
_POLL_INTERVAL = 0.02
_MAX_ANSWER = 1 << 16  # bytes of an answer
# The remedy for a server that does not answer.
REMEDY = "end its process; the next shim starts another"


class Health(Enum):
    """The health of a fork server."""

    UP = "up"  # it answers
    STOPPED = "stopped"  # it answers, accepts no starts, and ends with its shims
    EXITED = "exited"  # it was stopped, and has exited
    STALE = "stale"  # no server listens on the socket
    SILENT = "silent"  # the server gives no answer, or an invalid one
    UNTRUSTED = "untrusted"  # another user could have made the socket


@dataclass(frozen=True, slots=True)
class Server:
    """One socket of a fork server, and the server that answers on it.

    ``pid`` is 0 if no server answers.  ``idle`` is the time without a shim, in seconds,
    after which the server exits; 0 is no limit.  ``ours`` is true for the server that
    shims started by this process would use.

    ``keeps`` is the number of shims that the server replaces if they are killed, and
    ``reports`` of shims that were upgraded since, and of which it reports the exits of
    processes.  A server that is stopped exits when it has none of both.  ``problem`` is
    empty, or why the server is not up.
    """

    socket: str
    health: Health
    pid: int = 0
    daemons: int = 0
    idle: float = 0.0
    ours: bool = False
    problem: str = ""
    keeps: int = 0
    reports: int = 0


@dataclass(frozen=True, slots=True)
class Warmed:
    """A fork server that answers; ``started`` is false if it was running before."""

    socket: str
    pid: int
    started: bool


async def list_servers() -> list[Server]:
    """Return the servers of all sockets in the fork servers' directory.

    A socket that another user could have made is listed, but not connected to.

    :raises InvalidError: TRIO_SHIM_FORKSERVER_DIR cannot be the directory of sockets.
    """
    _check_environment()
    directory, own = identity.directory(), identity.socket_path()
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208 - names make a launcher's paths
    except (FileNotFoundError, NotADirectoryError):
        names = []
    # The socket of a server that is starting has a name that begins with a dot.
    paths = (f"{directory}/{name}" for name in names if not name.startswith("."))
    found = [await _inspect(path, own) for path in paths]
    for name in filter(stopped.is_name, names):
        server = await _inspect(f"{directory}/{name}", own)
        if server.health is not Health.STALE:  # the next server removes its socket
            found.append(server)
    # An untrusted directory never has the socket that this process would use.
    if not any(server.ours for server in found) and (reason := _reason_for_no_server(own)):
        found.append(Server(own, Health.UNTRUSTED, ours=True, problem=reason))
    return found


def _reason_for_no_server(own: str) -> str:
    """Return why shims of this process start no fork server; empty if they start one."""
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
        return _answered(path, *await _request(path, b"status"), ours=path == own)
    except (FileNotFoundError, UnavailableError):
        return found(Health.STALE, problem="no server listens on this socket any more")
    except (ShimError, OSError, KeyError, TypeError, ValueError) as exc:
        return found(Health.SILENT, problem=explain(exc))


def _answered(path: str, pid: int, answer: dict[str, Any], *, ours: bool = False) -> Server:
    """Return the server that has answered a request for its status.

    An answer of an earlier version has no numbers of kept and of upgraded shims.

    :raises KeyError, TypeError, ValueError: the answer is malformed.
    """
    keeps, reports = (int(answer.get(name, 0)) for name in ("keeps", "reports"))
    health, problem = Health.UP, ""
    if answer.get("stopped", False):
        health, problem = Health.STOPPED, _remains(keeps, reports)
    return Server(
        *(path, health, pid, int(answer["daemons"]), float(answer["idle"])),
        *(ours, problem, keeps, reports),
    )


def _remains(keeps: int, reports: int) -> str:
    """Return what a server does that is stopped."""
    does = []
    if keeps:
        does.append(f"keeps the files of {_shims(keeps)}")
    if reports:
        does.append(f"reports the exits of processes of {_shims(reports, 'upgraded ')}")
    if not does:
        return "it accepts no starts, and is about to exit"
    return f"it accepts no starts, still {' and '.join(does)}, and exits with the last of them"


def _shims(count: int, kind: str = "") -> str:
    return f"{count} {kind}shim{'' if count == 1 else 's'}"


async def _request(path: str, command: bytes) -> tuple[int, dict[str, Any]]:
    """Send ``command`` to a fork server; return its pid and its answer.

    :raises UnavailableError: no server listens on the socket.
    :raises TimedOutError: the server does not answer within 5 s.
    :raises InvalidError: the server is another user's, or its answer is not a JSON object.
    """
    pid = 0
    with trio.move_on_after(_ANSWER_TIMEOUT):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        with trio.socket.from_stdlib_socket(sock) as connection:
            # With a full backlog there is no event to wait for.
            while not sockets.try_connect(sock, f"unix://{path}"):  # noqa: ASYNC110
                await trio.sleep(sockets.PAUSE)
            pid, uid, _ = peer_of(connection)
            if uid != os.geteuid():
                raise InvalidError(f"cannot use {path}: its server runs as user {uid}")
            await connection.send(command)
            await trio.lowlevel.wait_readable(sock)
            data = receive(sock, _MAX_ANSWER)
        answer = json.loads(data)
        if not isinstance(answer, dict):
            raise InvalidError(f"cannot use {path}: its server answered {data[:40]!r}")
        return pid, answer
    server = f"the fork server {pid}" if pid else "the fork server"
    raise TimedOutError(f"{server} did not answer in {_ANSWER_TIMEOUT:g} s")


async def stop_servers() -> list[Server]:
    """Stop every trusted fork server; return the servers after that.

    Their shims keep running.  A server has exited, and process 1 is the parent of its shims, or
    it is stopped: it accepts no starts, and stays for the shims that it keeps, and
    for those of which it reports exits.

    :raises ShimError: a server could not be stopped; the others are.
    """
    ended, problems = [], []
    for server in await list_servers():
        if server.health is Health.STALE or not os.path.lexists(server.socket):
            continue
        try:
            if server.health not in (Health.UP, Health.STOPPED):
                raise UnavailableError(f"{server.problem}; {REMEDY}")
            ended.append(await _stop(server))
        except (ShimError, OSError, ValueError) as exc:
            problems.append(f"{server.socket}: {explain(exc)}")
    if problems:
        raise ShimError(f"cannot stop a fork server: {'; '.join(problems)}")
    return ended


async def _stop(server: Server) -> Server:
    if not server.pid:
        raise UnavailableError("it is in another pid namespace; run this command there")
    exited = replace(server, health=Health.EXITED, problem="", keeps=0, reports=0)
    try:
        process = os.pidfd_open(server.pid)
    except ProcessLookupError:
        return exited
    try:
        answer: dict[str, Any] = {}
        with suppress(UnavailableError):  # it has exited in the meantime
            _, answer = await _request(server.socket, b"stop")
        path = str(answer.get("socket", server.socket))
        if _stays(answer):
            return _answered(path, server.pid, answer)
        with trio.move_on_after(_STOP_TIMEOUT):
            await trio.lowlevel.wait_readable(process)
            return exited
        # A start that was under way may have become a shim that the server keeps.
        with suppress(ShimError):
            _, answer = await _request(path, b"status")
            if _stays(answer):
                return _answered(path, server.pid, answer)
    finally:
        os.close(process)
    raise TimedOutError(
        f"process {server.pid} did not exit within {_STOP_TIMEOUT:g} s; run `kill {server.pid}`"
    )


def _stays(answer: dict[str, Any]) -> bool:
    return bool(answer.get("stopped") and (answer.get("keeps") or answer.get("reports")))


async def warm(*, like: int = 0) -> Warmed:
    """Start the fork server that shims of this process will use; wait until it answers.

    A fork server only serves callers in its own cgroup.  If ``like`` is the pid of
    a process, this process first moves into the cgroup of that process.

    :raises NotFoundError: there is no process ``like``.
    :raises InvalidError: process ``like`` is in another namespace than this one, or the
        server's socket or directory is not trusted.
    :raises TimedOutError: the server does not answer within 10 s; it was killed.
    :raises ShimError: the server exited.
    """
    _check_environment()
    if like:
        join(like)
    path = identity.socket_path()
    if not path:
        raise InvalidError("cannot start a fork server: this process has a system call filter")
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
                    error = _last_error_line(errors) or "it exited without an error message"
                    raise ShimError(f"cannot start the fork server: {error}")
                await trio.sleep(_POLL_INTERVAL)
        _kill(child)
    finally:
        os.close(errors)
    raise TimedOutError(
        f"the fork server did not answer within {_START_TIMEOUT:g} s and was killed"
    )


async def _pid_at(path: str) -> int:
    """Return the pid of the server that listens on ``path``, 0 if there is none.

    :raises InvalidError: the socket or its directory is not trusted.
    """
    try:
        if reason := launcher.distrust(path):
            raise InvalidError(f"cannot start a fork server: {reason}")
        return (await _request(path, b"status"))[0]
    except (FileNotFoundError, UnavailableError):
        return 0
    except TimedOutError as exc:
        raise TimedOutError(f"{exc}; {REMEDY}") from None


def _spawn() -> tuple[int, int]:
    """Start a fork server in a new session; return its pid and the read end of its stderr.

    The interpreter and the package are those of this process, since they are a part
    of the name of the server's socket.
    """
    package = str(Path(launcher.__file__).absolute().parent)
    here = Interpreter(sys.executable, tuple(search_path()), package, VERSION)
    code = here.code("shim.start.launcher", named=True)
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
    os.kill(child, signal.SIGKILL)  # the pid cannot be reused before waitpid
    os.waitpid(child, 0)


def _last_error_line(errors: int) -> str:
    """Return the last line that the server wrote to its stderr, empty if there is none."""
    text = b""
    while select.select([errors], [], [], 0)[0] and (chunk := os.read(errors, _MAX_ANSWER)):
        text += chunk
    return text.decode(errors="replace").strip().rpartition("\n")[2]
