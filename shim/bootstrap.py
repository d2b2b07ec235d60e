"""``start`` and ``delete``: what a manager runs before a shim is there, and after.

``start`` binds the socket, forks the daemon and answers once it serves.  The
manager reads stdout and stderr as one and waits for every holder of that pipe,
so nothing else may be written and the daemon must inherit none of it.

Source: containerd core/runtime/v2/binary.go, and
cmd/containerd-shim-runc-v2/manager/manager_linux.go.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim import daemon, log
from shim.api.bootstrap_pb2 import BootstrapResult
from shim.api.task_grpc import TaskStub
from shim.api.task_pb2 import ConnectRequest, DeleteResponse
from shim.cgroup.find import cgroup_at
from shim.container.abandoned import kill_abandoned
from shim.container.bundle import Bundle, checked_id
from shim.container.options import Options
from shim.errors import ExistsError, InvalidError, ShimError, TimedOutError, UnavailableError
from shim.linux import libc, sockets
from shim.linux.mounts import unmount_all
from shim.reaper import open_reaper
from shim.runc.driver import LIMIT, Runc
from shim.ttrpc.client import open_channel

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.config import Flags, Invocation

# Seconds for a new daemon to serve, and for a running one, which may be about to,
# to say what it speaks.
READY = 10.0
ASK = 5.0
# Shims of one pod that may end just when they are asked.
ATTEMPTS = 5
# Seconds the runtime has to delete a container, and all of ``delete`` then takes
# at most: containerd kills it after five, in which the interpreter has to start too.
RUNTIME = 2.5
DELETE = 3.5
# What the manager is told of a container that ended without a witness: it was
# killed, by us if by nobody else.
KILLED = 128 + signal.SIGKILL

# Where a daemon keeps what it is born with; nothing else is open then.
_LISTENER = 3
_CALLER = (4, 5, 6)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who waits for the outcome of a ``start``, and the fds to reach it by.

    ``status`` takes one byte, the exit status; its end without one means that
    there is no daemon.  ``manager`` is the pid of the process that ran ``start``.
    """

    stdout: int
    stderr: int
    status: int
    manager: int

    def answer(self, data: bytes) -> None:
        """Print the answer and let the caller go; nothing of it stays open here."""
        os.write(self.stdout, data)
        self._leave(0)

    def refuse(self, text: str) -> None:
        """Say why there is no daemon, in one line."""
        os.write(self.stderr, text.encode(errors="replace") + b"\n")
        self._leave(1)

    def _leave(self, status: int) -> None:
        # The manager waits until nobody holds its pipe, so these go first.
        os.close(self.stdout)
        os.close(self.stderr)
        os.write(self.status, bytes([status]))
        os.close(self.status)


def start(invocation: Invocation, title: str) -> int:
    """Start a daemon in a process of its own; return the exit status to leave with.

    The answer, or the reason there is none, has been printed then.

    :raises UnavailableError: the daemon died, or was silent for too long.
    """
    manager = os.getppid()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        become_daemon(invocation, title, Caller(1, 2, writer, manager))
    os.close(writer)
    try:
        said, _ = _read_until(reader, READY)
    finally:
        os.close(reader)
    if said:
        return said[0]
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
            try:
                serving, caller = _detach(invocation, listener, caller)
                _settle(invocation, caller.manager, title)
                settings = daemon.Settings(
                    namespace=invocation.namespace,
                    id=invocation.id,
                    ttrpc_address=invocation.ttrpc_address,
                    socket_path=sockets.socket_path(address),
                    limit=invocation.runtime_timeout or LIMIT,
                )

                def ready() -> None:
                    nonlocal answered
                    caller.answer(answer)
                    answered = True

                daemon.run(settings, serving, ready)
            except BaseException:
                if not answered:
                    with suppress(OSError):
                        Path(sockets.socket_path(address)).unlink()
                raise
        status = 0
    except BaseException as exc:
        if not isinstance(exc, (ShimError, OSError)) or answered:
            log.crash("the shim failed", exc, id=invocation.id)
        if not answered:
            with suppress(OSError):
                caller.refuse(f"{title}: {exc or type(exc).__name__}")
    finally:
        os._exit(status)


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
    Path("address").write_text(address)
    return address, listener, version


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
        return address.encode()
    return BootstrapResult(version=version, address=address, protocol="ttrpc").SerializeToString()


def _spoken_version(address: str) -> int:
    """Ask the shim that already serves ``address``, which may be another program's."""

    async def ask() -> int:
        with trio.fail_after(ASK):
            async with await sockets.connect(address) as stream, open_channel(stream) as channel:
                try:
                    await TaskStub(channel).Connect(ConnectRequest())
                except GRPCError as exc:
                    return 2 if exc.status is Status.UNIMPLEMENTED else 3
                return 3

    try:
        return trio.run(ask)
    except trio.TooSlowError:
        raise TimedOutError(f"the shim at {address} does not answer; end it and retry") from None


def _read_until(fd: int, seconds: float) -> tuple[bytes, bool]:
    """Read what comes within ``seconds``; say whether the end came too."""
    deadline = time.monotonic() + seconds
    data = b""
    while select.select([fd], [], [], max(0, deadline - time.monotonic()))[0]:
        chunk = os.read(fd, 4096)
        if not chunk:
            return data, True
        data += chunk
    return data, False


def _detach(
    invocation: Invocation, listener: socket.socket, caller: Caller
) -> tuple[socket.socket, Caller]:
    """Leave everything the launcher came with; return what was kept under its new numbers."""
    os.setsid()
    log_fd = _open_log()
    null = os.open(os.devnull, os.O_RDWR)
    kept = (null, null, log_fd, listener.fileno(), caller.stdout, caller.stderr, caller.status)
    # Out of the way first: any of them may have one of the numbers they go to.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in kept]
    listener.detach()
    for number, fd in enumerate(high):
        os.dup2(fd, number, inheritable=number < _LISTENER)
    os.closerange(len(high), os.sysconf("SC_OPEN_MAX"))
    log.configure(2, invocation.level)
    if invocation.warning:
        log.warning(invocation.warning)
    return socket.socket(fileno=_LISTENER), Caller(*_CALLER, caller.manager)


def _settle(invocation: Invocation, manager: int, title: str) -> None:
    """Become what a daemon is to the kernel.

    Only after :func:`_detach`, since what fails here is told through the caller's new fds.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
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
    path = Options.decode(invocation.options).shim_cgroup
    if path:
        try:
            cgroup_at(path).add(os.getpid())
        except OSError as exc:
            text = f"the shim cannot join cgroup {path[:200]!r}: {exc.strerror}"
            raise InvalidError(text) from None


def _isolate_core() -> None:
    try:
        libc.create_core_cookie()
    except OSError as exc:
        log.warning("no core scheduling on this machine", error=exc)


def delete(flags: Flags) -> bytes:
    """Clean up after a container whose shim is gone, or never was; return a DeleteResponse.

    Says the same however often it is called, and in time whatever hangs.  What
    cannot be cleaned is logged on stderr, which the manager copies into its log.

    :raises InvalidError: the flags name no container.
    """
    checked_id(flags.id)
    bundle = Bundle(_bundle_of(flags))
    reply = DeleteResponse(pid=bundle.read_pid(), exit_status=KILLED)
    _in_time(lambda: _clean_up(flags, bundle), flags.id)
    reply.exited_at.GetCurrentTime()
    return reply.SerializeToString()


def _in_time(work: Callable[[], None], id_: str) -> None:
    """Do ``work`` in a process of its own, which is left behind if the kernel keeps it.

    A runtime or an unmount that waits for a dead disk cannot even be killed.
    """
    reader, writer = os.pipe()
    try:
        pid = os.fork()
    except OSError as exc:
        os.close(reader)
        os.close(writer)
        log.warning("the clean-up is not bounded: no process to be had", id=id_, error=exc)
        work()
        return
    if pid == 0:
        try:
            # The manager waits for the end of our output, so that is not held here.
            null = os.open(os.devnull, os.O_RDWR)
            for number, fd in enumerate((null, null, writer)):
                os.dup2(fd, number)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            work()
        except BaseException as exc:
            log.crash("the clean-up failed", exc, id=id_)
        finally:
            os._exit(0)
    os.close(writer)
    try:
        said, ended = _read_until(reader, DELETE)
    finally:
        os.close(reader)
    with suppress(OSError):
        os.write(2, said)
    if not ended:
        log.warning("the clean-up is not done yet: something hangs", id=id_)
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):  # whoever started us may have SIGCHLD ignored
        os.waitpid(pid, 0 if ended else os.WNOHANG)


def _clean_up(flags: Flags, bundle: Bundle) -> None:
    # The container ends first, so that no runtime that hangs keeps it alive.
    kill_abandoned(bundle, flags.id)
    runtime = Options.read(bundle.path / "options.json").runtime(flags.namespace)
    if _has_state(Path(runtime.root), flags.id):

        async def force() -> None:
            async with open_reaper() as reaper:
                await Runc(runtime, reaper, RUNTIME).run("delete", "--force", flags.id)

        try:
            trio.run(force)
        except (ShimError, OSError) as exc:
            log.warning("the runtime could not delete the container", id=flags.id, error=exc)
    try:
        unmount_all(str(bundle.rootfs))
    except (ShimError, OSError) as exc:
        log.warning("the rootfs is still mounted", id=flags.id, error=exc)
    _remove_dead_socket(bundle)


def _bundle_of(flags: Flags) -> Path:
    if flags.bundle:
        return Path(flags.bundle)
    here = Path.cwd()
    sibling = here.parent / flags.id
    return sibling if sibling.is_dir() else here


def _has_state(root: Path, id_: str) -> bool:
    """Say whether the runtime may still know the container.

    runc, crun and youki keep a directory of its name, gVisor files that begin with it.
    """
    with suppress(OSError):
        return any(name == id_ or name.startswith(f"{id_}_") for name in os.listdir(root))  # noqa: PTH208 - names are wanted
    return False


def _remove_dead_socket(bundle: Bundle) -> None:
    with suppress(OSError):
        address = (bundle.path / "address").read_text().strip()
        path = Path(sockets.socket_path(address))
        if path.is_socket() and not sockets.can_connect(address):
            path.unlink()
