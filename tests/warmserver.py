"""The process from which :mod:`tests.warm` forks the processes of a test's command lines.

    python -m tests.warmserver FD PACKAGE PADDING

It imports PACKAGE with its modules, and then serves the SOCK_SEQPACKET socket FD until the
other end is closed.  A request is JSON with fds: a socket for the replies, the working
directory, and the three standard streams.  The first reply is the pid with a pidfd of the child,
the second the wait status.

The child runs the module as ``python -m`` does.  Whatever a new process would have, it has too:
arguments, environment, umask, working directory, time zone, and the three fds and no other.  Its
command line in /proc is followed by NUL bytes, and ends at the length of PADDING.  It
differs in its parent, and in the modules that are loaded already; those of the shim are immortal
on CPython 3.12 and 3.13, as in a fork server.
"""

from __future__ import annotations

import array
import atexit
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

# The longest request, in bytes; one that is longer does not fit into the socket's buffer.
MAX_REQUEST = 100_000
# The most bytes of an environment.
ENVIRONMENT = 1 << 14
FDS = 5
# Source: linux/prctl.h.
_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
# The fields of /proc/self/stat for struct prctl_mm_map; 0 is the end of the heap.
_MAP = (26, 27, 45, 46, 47, 0, 28, 48, 49, 50, 51)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    _import_all(sys.argv[2])
    if sys.argv[2] == "shim":
        _make_immortal()
    # Objects that no collection visits stay shared with the children.
    gc.collect()
    gc.freeze()
    _serve(control)


def _import_all(package: str) -> None:
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(getattr(root, "__path__", ()), f"{package}."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)


def _make_immortal() -> None:
    """Do once what each fork server does for its objects, 0.15 s on CPython 3.12 and 3.13."""
    from shim.linux import libc
    from shim.start import heap

    if libc.has_immortals():
        libc.make_immortal(heap._program())
        heap._program = list


def _serve(control: socket.socket) -> None:
    children: dict[int, tuple[int, socket.socket]] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd != control.fileno():
                poll.unregister(fd)
                pid, replies = children.pop(fd)
                os.close(fd)
                with replies:
                    _reply(replies, os.waitpid(pid, 0)[1])
                continue
            data, fds, _, _ = socket.recv_fds(control, MAX_REQUEST, FDS)
            if not data:
                return
            pid = os.fork()
            if pid == 0:
                _become(json.loads(data), fds)
            pidfd = os.pidfd_open(pid)
            children[pidfd] = pid, socket.socket(fileno=fds[0])
            for number in fds[1:]:
                os.close(number)
            _reply(children[pidfd][1], pid, pidfd)
            poll.register(pidfd, select.POLLIN)


def _reply(replies: socket.socket, number: int, *fds: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        replies.sendmsg([b"%d" % number], rights)
    except BrokenPipeError:
        return  # the test has ended


def _become(request: dict[str, Any], fds: list[int]) -> NoReturn:
    """In the child: take the attributes of the request, run its module, and exit."""
    os.fchdir(fds[1])
    for number, fd in enumerate(fds[2:]):
        os.dup2(fd, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.umask(request["umask"])
    # The interpreter sets it in the C locale, for its children too.  Source: PEP 538.
    coerced = {name: os.environ[name] for name in ("LC_CTYPE",) if name in os.environ}
    os.environ.clear()
    os.environ.update(coerced | request["environ"])
    _show(50, [f"{name}={value}" for name, value in request["environ"].items()])
    time.tzset()
    module, *arguments = request["argv"]
    _show(48, [sys.executable, "-m", module, *arguments])
    sys.argv = [module, *arguments]  # runpy replaces the first
    sys.path[0] = os.getcwd()  # noqa: PTH109 - as ``python -m`` does
    code: object = 1
    interrupted = False
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as exc:
        code = exc.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException as exc:
        sys.excepthook(type(exc), exc, exc.__traceback__)
        interrupted = isinstance(exc, KeyboardInterrupt)
    # As the interpreter ends, without freeing each object: that takes longer than the rest.
    threading._shutdown()  # type: ignore[attr-defined]  # typeshed lacks it
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code if isinstance(code, int) else int(code is not None))


def _show(field: int, words: list[str]) -> None:
    """Show ``words`` in /proc/self/cmdline or environ, as far as they fit.

    Source: proc(5), /proc/pid/stat fields 48 arg_start to 51 env_end.
    """
    with open("/proc/self/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    start, end = int(fields[field - 3]), int(fields[field - 2])
    text = b"".join(os.fsencode(word) + b"\0" for word in words)[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)
    if field == 50:
        _end_environment(fields, start + len(text))


def _end_environment(fields: list[bytes], end: int) -> None:
    """Let the environment end at ``end``; if the kernel refuses, NUL bytes follow."""
    c = ctypes.CDLL(None)
    c.sbrk.restype = ctypes.c_void_p
    places = [int(fields[number - 3]) if number else c.sbrk(0) for number in _MAP]
    places[-1] = end
    # No auxiliary vector, and no executable.
    data = b"".join(place.to_bytes(8, sys.byteorder) for place in (*places, 0))
    data += bytes(4) + b"\xff" * 4
    c.prctl(_PR_SET_MM, _PR_SET_MM_MAP, data, ctypes.c_ulong(len(data)), ctypes.c_ulong(0))


if __name__ == "__main__":
    main()
