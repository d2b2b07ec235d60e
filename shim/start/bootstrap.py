"""The action ``start``: it starts a daemon, or finds the one that serves the pod.

A forked process binds the socket, becomes the daemon and sends the answer when it
serves.  The manager reads stdout and stderr of ``start`` from one pipe, as one
answer, until every holder has closed it.  So the daemon must not inherit the pipe:
it sends the answer to the process that the manager runs
(:mod:`shim.start.launcher`), which alone writes it.

Source: containerd core/runtime/v2/binary.go, and
cmd/containerd-shim-runc-v2/manager/manager_linux.go.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from shim import daemon, hostfile, log
from shim.container.bundle import Config, checked_id
from shim.container.options import Options
from shim.errors import InvalidError, ShimError, UnavailableError
from shim.linux import libc, sockets
from shim.linux.fds import close_all_but
from shim.linux.peers import peer_of
from shim.recovery.deposit import Deposit
from shim.runc.driver import LIMIT
from shim.start import identity, launcher
from shim.start.caller import Caller
from shim.start.daemonize import detach, set_attributes, shim_cgroup_of, title_of
from shim.start.podsocket import bind, encode_answer
from shim.start.profile import Profile
from shim.start.sharing import Origin, sharing_of
from shim.text import explain

if TYPE_CHECKING:
    import trio

    from shim.start.flags import Invocation

# Seconds for the end of a process that has not become a daemon in time.
_KILLED = 0.1


def start(invocation: Invocation, title: str, deadline: float) -> tuple[socket.socket, bytes]:
    """Fork a daemon; return the connection to it and its answer.

    Both are the arguments of :func:`launcher.print_answer`.  ``title`` is the name of
    the daemon's process.

    :raises UnavailableError: the daemon exited, or did not answer within 10 s, or until
        ``deadline`` on the monotonic clock; if it waits for a processor then, within 60 s.
    """
    manager = os.getppid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        # Among them are copies of the caller's output, which the manager reads to its end.
        ours.detach()
        close_all_but(theirs.fileno())
        become_daemon(invocation, title, Caller(theirs, manager))
    theirs.close()
    began = time.monotonic()
    end = min(deadline, began + launcher.WORK["start"])
    problem = (
        "cannot start the shim: its process has ended, or was stopped, before its answer; "
        "see the manager's log"
    )
    try:
        answer, _ = launcher.receive(ours, end, pid, launcher.latest_answer("start", deadline))
        if answer:
            return ours, answer
    except ConnectionError:
        pass
    except TimeoutError:
        if (now := time.monotonic()) >= end:
            problem = launcher.late_problem("start", now - began, pid)
    ours.close()
    with suppress(OSError):  # it has ended, and an ignored SIGCHLD has reaped it
        child = os.pidfd_open(pid)
        launcher.kill_child(child, _KILLED)  # the child may wait for a dead disk
        os.close(child)
        os.waitpid(pid, os.WNOHANG)
    raise UnavailableError(problem)


def become_daemon(
    invocation: Invocation,
    title: str,
    caller: Caller,
    server: str | None = None,
    channel: socket.socket | None = None,
) -> NoReturn:
    """In a forked process: become the daemon for the bundle in the working directory.

    If a shim already serves the container, send the caller its address and exit.  After
    an error, send the caller one line and exit.  ``server`` is the name of the
    fork server's socket if this process is its child, and ``channel`` is that to the server
    as the keeper of this daemon's fds.

    The exit status is 1 if the daemon failed after the answer, else 0: the keeper replaces a
    daemon with another status.
    """
    status = 0
    answered = False
    try:
        if server is None:
            origin = Origin.of_process(caller.manager, title)
        else:
            origin = Origin.of_child(caller.manager, title, server)
        place = bind(invocation, origin)
        answer = encode_answer(invocation, place.address, place.version)
        if place.listener is None:
            caller.answer(answer)
        else:
            settings = daemon.Settings(
                namespace=invocation.namespace,
                id=invocation.id,
                bundle=os.getcwd(),  # noqa: PTH109 - the value is a plain string
                ttrpc_address=invocation.ttrpc_address,
                address=place.bound,
                limit=invocation.runtime_timeout or LIMIT,
                ended_is_killed=not invocation.grpc_address,  # only CRI-O gives no address
                first=place.first,
            )
            survives = _is_to_survive()
            path = _server_of(server) if survives else ""
            if channel is not None and not survives:
                channel.close()
                channel = None
            try:
                serving, caller, channel = detach(invocation, place.listener, caller, channel)
                set_attributes(invocation, caller.manager, title)
            except BaseException:
                place.close()
                raise
            deposit = Deposit()
            if survives:
                profile = _profile(invocation, title, settings, answer)
                deposit = _leave(channel, path, profile, serving, caller)

            async def ready(task_status: trio.TaskStatus[None]) -> bool:
                nonlocal answered
                caller.answer(answer)
                answered = True
                return await caller.wait_received(task_status, deposit)

            daemon.run(settings, serving, ready, deposit)
    except BaseException as exc:
        if not isinstance(exc, (ShimError, OSError)) or answered:
            log.crash("the daemon failed", exc, id=invocation.id)
        if answered:
            status = 1
        else:
            with suppress(OSError):
                caller.refuse(f"{title}: {explain(exc)}")
    finally:
        os._exit(status)


def _is_to_survive() -> bool:
    try:
        return hostfile.read(os.environ).survive
    except InvalidError:
        return False  # Create reports the error, until the file is corrected


def _server_of(server: str | None) -> str:
    """Return the path of the socket of this daemon's fork server, "" if it may have none.

    A daemon that was started without one registers with it later.
    """
    if server is not None:
        return f"{identity.directory()}/{server}"
    return identity.socket_path() if launcher.is_enabled() else ""


def _profile(
    invocation: Invocation, title: str, settings: daemon.Settings, answer: bytes
) -> Profile:
    return Profile.of_this_process(
        settings,
        answer,
        title_of(invocation, title),
        invocation.level,
        shim_cgroup_of(invocation),
        sched_core=invocation.sched_core,
    )


def _leave(
    channel: socket.socket | None,
    path: str,
    profile: Profile,
    listener: socket.socket,
    caller: Caller,
) -> Deposit:
    """Leave the new daemon's fds and ``profile`` with the keeper; return the deposit.

    Without a keeper, or if it has ended, they are left later, when a fork server listens at
    ``path``.  The deposit is inactive if ``path`` is empty.
    """

    def left_with(keeper: socket.socket | None) -> Deposit:
        fds = profile.leave(keeper, listener, caller)
        return Deposit(keeper, path, fds, starter="" if profile.is_apart else profile.title[0])

    reason: object = "it was started without a fork server"
    lost = 0
    if path and channel is not None:
        try:
            return left_with(channel)
        except OSError as exc:
            log.warning("the fork server does not keep the files of this shim", error=exc)
            lost = peer_of(channel).pid
            channel.close()
    if path:
        try:
            deposit = left_with(None)
        except OSError as exc:
            reason = exc
        else:
            deposit.keeper = lost  # it is not asked again
            log.info("this shim has no fork server, and waits for one")
            return deposit
    log.warning("a death of this shim ends its containers", reason=reason)
    return Deposit()


def warm_up(invocation: Invocation) -> None:
    """Run the parts of a ``start`` that change no file, for the same reason as daemon.warm_up.

    See :func:`shim.daemon.warm_up`.
    """
    checked_id(invocation.id)
    config = Config.parse(
        b'{"process": {}, "root": {"path": "rootfs"}, "annotations": {"a": "b"}}'
    )
    address = sockets.socket_address("/run", "warmup", config.group or invocation.id)
    encode_answer(invocation, address, 3)
    with suppress(ShimError):
        origin = Origin.of_child(os.getpid(), "warmup", "warmup")
        if (sharing := sharing_of(invocation, config, origin)) is not None:
            sharing.address(0)
    Options.decode(invocation.options)
    with suppress(OSError):
        libc.disable_thp()  # the server has set this already
    Path("/proc/self/oom_score_adj").read_text()
