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
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from shim import daemon, log
from shim.container.bundle import Config, checked_id
from shim.container.options import Options
from shim.errors import ShimError, UnavailableError
from shim.linux import libc, sockets
from shim.runc.driver import LIMIT
from shim.start import launcher
from shim.start.caller import Caller
from shim.start.daemonize import detach, set_attributes
from shim.start.podsocket import bind, encode_answer
from shim.start.sharing import Origin, sharing_of
from shim.text import explain

if TYPE_CHECKING:
    import trio

    from shim.start.flags import Invocation

# Seconds from the fork until the daemon serves.
READY_TIMEOUT = 10.0


def start(invocation: Invocation, title: str) -> tuple[socket.socket, bytes]:
    """Fork a daemon; return the connection to it and its answer.

    Both are the arguments of :func:`launcher.print_answer`.  ``title`` is the name of
    the daemon's process.

    :raises UnavailableError: the daemon exited, or did not answer within 10 s.
    """
    manager = os.getppid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        # Among them are copies of the caller's output, which the manager reads to its end.
        ours.detach()
        os.closerange(3, theirs.fileno())
        os.closerange(theirs.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        become_daemon(invocation, title, Caller(theirs, manager))
    theirs.close()
    ours.settimeout(READY_TIMEOUT)
    with suppress(TimeoutError, ConnectionError):
        if answer := ours.recv(launcher.MAX_ANSWER):
            return ours, answer
    ours.close()
    with suppress(OSError):  # it has ended, and an ignored SIGCHLD has reaped it
        child = os.pidfd_open(pid)
        launcher.kill_child(child)  # waits a second at most: the child may wait for a dead disk
        os.close(child)
        os.waitpid(pid, os.WNOHANG)
    raise UnavailableError(
        f"cannot start the shim: no answer within {READY_TIMEOUT:g} s; see the manager's log"
    )


def become_daemon(
    invocation: Invocation, title: str, caller: Caller, server: str | None = None
) -> NoReturn:
    """In a forked process: become the daemon for the bundle in the working directory.

    If a shim already serves the container, send the caller its address and exit.  After
    an error, send the caller one line and exit with status 1.  ``server`` is the name of the
    fork server's socket if this process is its child.
    """
    status = 1
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
            try:
                serving, caller = detach(invocation, place.listener, caller)
                set_attributes(invocation, caller.manager, title)
            except BaseException:
                place.close()
                raise

            async def ready(task_status: trio.TaskStatus[None]) -> bool:
                nonlocal answered
                caller.answer(answer)
                answered = True
                task_status.started()
                return await caller.wait_acknowledged()

            daemon.run(settings, serving, ready)
        status = 0
    except BaseException as exc:
        if not isinstance(exc, (ShimError, OSError)) or answered:
            log.crash("the daemon failed", exc, id=invocation.id)
        if not answered:
            with suppress(OSError):
                caller.refuse(f"{title}: {explain(exc)}")
    finally:
        os._exit(status)


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
