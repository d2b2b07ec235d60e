"""``start``: what a manager runs to have a shim.

It binds the socket, forks the daemon and answers once that serves.  The manager
reads stdout and stderr as one and waits for every holder of that pipe, so
nothing else may be written and the daemon must inherit none of it: it hands its
answer to the process that the manager runs (:mod:`shim.start.launcher`).

Source: containerd core/runtime/v2/binary.go, and
cmd/containerd-shim-runc-v2/manager/manager_linux.go.
"""

from __future__ import annotations

import os
import signal
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
from shim.start.podsocket import bind, encode_answer, remove_listener
from shim.text import explain

if TYPE_CHECKING:
    import trio

    from shim.start.flags import Invocation

# Seconds for a new daemon to serve.
READY_TIMEOUT = 10.0


def start(invocation: Invocation, title: str) -> tuple[socket.socket, bytes]:
    """Start a daemon in a process of its own; return what :func:`launcher.print_answer` wants.

    :raises UnavailableError: the daemon died, or was silent for too long.
    """
    manager = os.getppid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        become_daemon(invocation, title, Caller(theirs, manager))
    theirs.close()
    ours.settimeout(READY_TIMEOUT)
    with suppress(TimeoutError, ConnectionError):
        if answer := ours.recv(launcher.MAX_ANSWER):
            return ours, answer
    ours.close()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise UnavailableError(
        f"the shim did not start within {READY_TIMEOUT:g} s; see the manager's log"
    )


def become_daemon(invocation: Invocation, title: str, caller: Caller) -> NoReturn:
    """Serve the bundle in the working directory, in this forked process, and exit.

    A pod whose shim runs already is answered with its address.
    """
    status = 1
    answered = False
    try:
        address, listener, version = bind(invocation)
        answer = encode_answer(invocation, address, version)
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
                serving, caller = detach(invocation, listener, caller)
                set_attributes(invocation, caller.manager, title)
            except BaseException:
                remove_listener(listener, address)
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
            log.crash("the shim failed", exc, id=invocation.id)
        if not answered:
            with suppress(OSError):
                caller.refuse(f"{title}: {explain(exc)}")
    finally:
        os._exit(status)


def warm_up(invocation: Invocation) -> None:
    """Do what can be done of a ``start`` without leaving a trace, as :func:`daemon.warm_up`."""
    checked_id(invocation.id)
    config = Config.parse(
        b'{"process": {}, "root": {"path": "rootfs"}, "annotations": {"a": "b"}}'
    )
    address = sockets.socket_address("/run", "warmup", config.group or invocation.id)
    encode_answer(invocation, address, 3)
    Options.decode(invocation.options)
    with suppress(OSError):
        libc.disable_thp()  # as it is already
    Path("/proc/self/oom_score_adj").read_text()
