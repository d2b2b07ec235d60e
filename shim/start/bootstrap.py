"""``start``: what a manager runs to have a shim.

It binds the socket, forks the daemon and answers once that serves.  The manager
reads stdout and stderr as one and waits for every holder of that pipe, so
nothing else may be written and the daemon must inherit none of it: it hands its
answer to the process that the manager runs (:mod:`shim.start.launcher`).

Source: containerd core/runtime/v2/binary.go, and
cmd/containerd-shim-runc-v2/manager/manager_linux.go.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import trio
from grpclib.const import Status

from shim import daemon, log
from shim.api.bootstrap_pb2 import BootstrapResult
from shim.api.task_pb2 import ConnectRequest
from shim.cgroup.find import cgroup_at
from shim.cgroup.v1 import CgroupV1
from shim.container.bundle import Bundle, Config, checked_id
from shim.container.options import Options
from shim.errors import (
    ExistsError,
    InvalidError,
    ShimError,
    TimedOutError,
    UnavailableError,
    UnsupportedError,
)
from shim.linux import libc, sockets
from shim.linux.modes import write_file
from shim.runc.driver import LIMIT
from shim.start import launcher
from shim.text import explain, printable
from shim.ttrpc.protocol import ClientProtocol

if TYPE_CHECKING:
    from shim.start.flags import Invocation

# Seconds for a new daemon to serve, and for a running one, which may be about to,
# to say what it speaks.
READY = 10.0
ASK = 5.0
# Shims of one pod that may end just when they are asked.
ATTEMPTS = 5
# Who does not know it speaks version 2.
_TASK = "containerd.task.v3.Task"

# Where a daemon keeps what it is born with; nothing else is open then.
_LISTENER = 3
_CALLER = 4


@dataclass(frozen=True, slots=True)
class Caller:
    """The process that waits for the outcome of a ``start``.

    ``connection`` takes one packet, the answer; its end without one means that
    there is no daemon.  ``manager`` is the pid of the process that ran ``start``.
    """

    connection: socket.socket
    manager: int

    def answer(self, data: bytes) -> None:
        """Send what the caller is to print.

        :raises OSError: the caller has given up.
        """
        self.connection.send(launcher.pack(0, data))

    def refuse(self, text: str) -> None:
        """Say why there is no daemon, in one line."""
        self.connection.send(launcher.pack(1, errors=printable(text).encode() + b"\n"))

    async def wait_told(self) -> bool:
        """Wait until the caller has printed the answer; say whether it has."""
        with self.connection:
            self.connection.setblocking(False)
            await trio.lowlevel.wait_readable(self.connection)
            try:
                return self.connection.recv(16) == b"told"
            except OSError:
                return False


def start(invocation: Invocation, title: str) -> tuple[socket.socket, bytes]:
    """Start a daemon in a process of its own; return what :func:`launcher.give` wants.

    :raises UnavailableError: the daemon died, or was silent for too long.
    """
    manager = os.getppid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        become_daemon(invocation, title, Caller(theirs, manager))
    theirs.close()
    ours.settimeout(READY)
    with suppress(TimeoutError, ConnectionError):
        if answer := ours.recv(launcher.ANSWER):
            return ours, answer
    ours.close()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise UnavailableError(f"the shim did not start within {READY:g} s; see the manager's log")


def become_daemon(invocation: Invocation, title: str, caller: Caller) -> NoReturn:
    """Serve the bundle in the working directory, in this forked process, and exit.

    A pod whose shim runs already is answered with its address.
    """
    status = 1
    answered = False
    try:
        address, listener, version = _bind(invocation)
        answer = _answer(invocation, address, version)
        if listener is None:
            caller.answer(answer)
        else:
            settings = daemon.Settings(
                namespace=invocation.namespace,
                id=invocation.id,
                bundle=os.getcwd(),  # noqa: PTH109 - the value is a plain string
                ttrpc_address=invocation.ttrpc_address,
                address=address,
                limit=invocation.runtime_timeout or LIMIT,
                ended_is_killed=not invocation.grpc_address,  # of all managers, only CRI-O's
            )
            try:
                serving, caller = _detach(invocation, listener, caller)
                _settle(invocation, caller.manager, title)
            except BaseException:
                _abandon(listener, address)
                raise

            async def ready(task_status: trio.TaskStatus[None]) -> bool:
                nonlocal answered
                caller.answer(answer)
                answered = True
                task_status.started()
                return await caller.wait_told()

            daemon.run(settings, serving, ready)
        status = 0
    except BaseException as exc:
        if not isinstance(exc, (ShimError, OSError)) or answered:
            log.crash("the shim failed", exc, id=invocation.id)
        if not answered:
            with suppress(OSError):
                caller.refuse(f"{title}: {explain(exc)}")
    finally:
        os._exit(status)


def rehearse(invocation: Invocation) -> None:
    """Do what can be done of a ``start`` without leaving a trace, as :func:`daemon.rehearse`."""
    checked_id(invocation.id)
    config = Config.parse(
        b'{"process": {}, "root": {"path": "rootfs"}, "annotations": {"a": "b"}}'
    )
    address = sockets.socket_address("/run", "rehearsal", config.group or invocation.id)
    _answer(invocation, address, 3)
    Options.decode(invocation.options)
    with suppress(OSError):
        libc.disable_thp()  # as it is already
    Path("/proc/self/oom_score_adj").read_text()


def _bind(invocation: Invocation) -> tuple[str, socket.socket | None, int]:
    """Return the address, its listener or None if a shim serves it, and what that speaks."""
    checked_id(invocation.id)
    config = Bundle.open(os.getcwd()).config()  # noqa: PTH109 - the value is a plain string
    address = sockets.socket_address(
        invocation.grpc_address,
        invocation.namespace,
        config.group or invocation.id,
        invocation.socket_dir,
    )
    listener, version = _listen_or_join(address, invocation)
    try:
        write_file("address", address, 0o644)  # the mode that containerd gives it
    except OSError as exc:
        with suppress(OSError):
            os.unlink("address")  # noqa: PTH108 - what was written of it leads nowhere
        if listener is not None:
            _abandon(listener, address)
        here = os.getcwd()  # noqa: PTH109 - as above
        reason = (exc.strerror or "unknown error").lower()
        raise UnavailableError(f"cannot write {here}/address: {reason}") from None
    return address, listener, version


def _abandon(listener: socket.socket, address: str) -> None:
    """Close a listener that nobody has been told of, and remove its socket."""
    # Ours without a doubt: it is alive until it is closed.
    with suppress(OSError):
        os.unlink(sockets.socket_path(address))  # noqa: PTH108 - a plain string
    listener.close()


def _listen_or_join(address: str, invocation: Invocation) -> tuple[socket.socket | None, int]:
    """Return the listener, or None if a shim serves ``address``, and the version spoken there.

    :raises TimedOutError: a shim that hangs is there, and the caller must know what it speaks.
    """
    for _ in range(ATTEMPTS):
        try:
            return sockets.listen(address), 3
        except ExistsError:
            try:
                return None, _spoken_version(address)
            except TimedOutError:
                if invocation.modern:
                    raise
                return None, 2
            except UnavailableError:
                continue  # it ended after we had looked: its address would lead nowhere
    raise UnavailableError(f"every shim at {address} went away at once; see the manager's log")


def _answer(invocation: Invocation, address: str, version: int) -> bytes:
    if not invocation.modern:
        return os.fsencode(address)
    return BootstrapResult(version=version, address=address, protocol="ttrpc").SerializeToString()


def _spoken_version(address: str) -> int:
    """Ask the shim that already serves ``address``, which may be another program's.

    :raises UnavailableError: it has ended, or is about to.
    :raises TimedOutError: it does not answer.
    :raises InvalidError: another user serves it.
    """
    # Every start in a pod pays for this: an event loop costs more than the question.
    protocol = ClientProtocol()
    _, question = protocol.encode_request(_TASK, "Connect", ConnectRequest().SerializeToString())
    try:
        with sockets.connect_blocking(address, ASK) as sock:
            sockets.check_server(sock, address)
            sock.sendall(question)
            while data := sock.recv(4096):
                for reply in protocol.receive_data(data):
                    return 2 if reply.status is Status.UNIMPLEMENTED else 3
    except BlockingIOError:
        raise TimedOutError(f"the shim at {address} does not answer; end it and retry") from None
    except ConnectionError:
        pass
    raise UnavailableError(f"the shim at {address} went away before it answered")


def _detach(
    invocation: Invocation, listener: socket.socket, caller: Caller
) -> tuple[socket.socket, Caller]:
    """Leave everything the launcher came with; return what was kept under its new numbers."""
    os.setsid()
    log_fd = _open_log()
    null = os.open(os.devnull, os.O_RDWR)
    kept = (null, null, log_fd, listener.fileno(), caller.connection.fileno())
    # Out of the way first: any of them may have one of the numbers they go to.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in kept]
    listener.detach()
    caller.connection.detach()
    for number, fd in enumerate(high):
        os.dup2(fd, number, inheritable=number < _LISTENER)
    os.closerange(len(high), os.sysconf("SC_OPEN_MAX"))
    log.configure(2, invocation.level)
    if invocation.warning:
        log.warning(invocation.warning)
    return socket.socket(fileno=_LISTENER), Caller(socket.socket(fileno=_CALLER), caller.manager)


def _settle(invocation: Invocation, manager: int, title: str) -> None:
    """Become what a daemon is to the kernel.

    Only after :func:`_detach`, since what fails here is told through the caller's new fds.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    with suppress(OSError):  # a kernel without keys, or a filter that forbids it
        libc.join_new_session_keyring()
    libc.set_child_subreaper()
    libc.set_name(title)
    words = ["-namespace", invocation.namespace, "-id", invocation.id]
    libc.set_title([title, *words, "-address", invocation.grpc_address])
    with suppress(OSError):  # a kernel without huge pages has none to keep away
        libc.disable_thp()
    _adjust_oom_score(manager)
    _join_cgroup(invocation)
    if invocation.sched_core:
        _isolate_core()
    os.chdir("/")


def _open_log() -> int:
    """Open the manager's log fifo in the bundle; without one there is no log.

    Both ends, so that a manager that restarts finds it alive.
    """
    try:
        return os.open("log", os.O_RDWR | os.O_NONBLOCK | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def _adjust_oom_score(manager: int) -> None:
    """Let the kernel take the shim before the manager, and containers before both.

    Source: containerd pkg/shim/util_unix.go AdjustOOMScore.
    """
    try:
        score = int(Path(f"/proc/{manager}/oom_score_adj").read_text())
        Path("/proc/self/oom_score_adj").write_text(str(min(score + 1, 1000)))
    except (OSError, ValueError) as exc:
        log.warning("the OOM score stays as it is", error=exc)


def _join_cgroup(invocation: Invocation) -> None:
    """Join the cgroup of the options, which is not made here: nobody would remove it."""
    path = Options.decode(invocation.options).shim_cgroup
    if not path:
        return
    try:
        cgroup = cgroup_at(path)
        if not cgroup.exists():
            raise InvalidError(f"shim_cgroup {path[:200]!r} does not exist: create it first")
        if isinstance(cgroup, CgroupV1):
            # Where it does not exist, the shim stays with the manager.
            there = {name: one for name, one in cgroup.directories.items() if os.path.isdir(one)}  # noqa: PTH112 - the values are plain strings
            cgroup = CgroupV1(there)
        cgroup.add(os.getpid())
    except OSError as exc:
        text = f"the shim cannot join cgroup {path[:200]!r}: {exc.strerror}"
        raise InvalidError(text) from None


def _isolate_core() -> None:
    """Share a core with no one but our containers.

    :raises UnsupportedError: it cannot be had.  Who asked for it relies on it.
    """
    try:
        libc.create_core_cookie()
    except OSError as exc:
        raise UnsupportedError(
            f"SCHED_CORE is set and this machine has no core scheduling ({exc.strerror}): "
            "unset it, or use a kernel with CONFIG_SCHED_CORE and SMT enabled"
        ) from None
