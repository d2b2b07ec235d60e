"""The executable's entry point: it sends the call to a fork server and prints the answer.

It imports few modules, since each module of the standard library costs a ``start``
milliseconds.  If no fork server runs, or none that can be trusted, this process does
the same work itself, with the same result, and takes longer.

A process may use a fork server only if both have the same inheritable attributes
(:mod:`shim.start.identity`).  The attributes that differ between calls (arguments,
environment, working directory, standard input, umask, nice value, CPU affinity,
resource limits) are copied from the caller by the server's child.

The conversation, one packet each:

    caller   ``run`` and its arguments, separated by NUL; fds: its standard input
             and a pidfd of itself
    server   ``heard``: it has read the request, and queued it
    server   ``child`` and the pid of the child that runs the call
    child    ``taken`` and its pid; fd: a pidfd of itself
    caller   ``go``
    child    exit status, standard output, standard error
    caller   ``told``: it has printed the answer

The child does no work before ``go``.  After ``go``, if the child is stopped or ends
without an answer, the caller kills it through the pidfd before it does the work itself.
So a server or a child that is stopped at any point of the conversation never runs a call
that its caller has given up.  A child that has not answered at the end of the action's
time limit waits for a disk: the caller kills it, and does not begin again.  Only the
caller writes to its standard output and standard error.  If a daemon's caller ends without
``told``, the daemon exits.
"""

from __future__ import annotations

import _socket
import os
import sys
import time

from shim.start.identity import socket_path

# Seconds for an action from the start of this process to the answer, with every attempt, and
# those of them for its work, by a child or by this process.  A busy machine needs the others
# to make a server, or to find a child.  containerd limits ``delete`` to five seconds.
LIMIT = {"start": 16.0, "-info": 16.0, "delete": 4.5}
WORK = {"start": 10.0, "-info": 10.0, "delete": 4.5}
_OTHER = 16.0
# Seconds for a ``start`` at the limit of whose work the child is ready to run: it waits for a
# processor, and no disk.
BUSY = 60.0
# Seconds for ``heard``, and seconds for ``taken`` from a server with queued calls or one
# that is ready to run and waits for a processor.  They are short for ``delete``, since
# containerd limits it to five seconds.  The caller gives up a server or a child that is
# stopped after two ticks of _TICK seconds.
_HEARD_TIMEOUT = {"start": 0.9, "-info": 0.9, "delete": 0.4}
_TAKEN_TIMEOUT = {"start": 5.0, "-info": 5.0, "delete": 0.9}
_TICK = 0.1
# Seconds for a killed child to end.
_KILL_TIMEOUT = 1.0
# Bytes of the longest request, which fits into a socket's buffer, and of an answer.
_MAX_REQUEST = 32768
MAX_ANSWER = 65536
# The most bytes of stdin, which is containerd's own limit, and seconds until its end.
STDIN_LIMIT = 10 << 20
STDIN_TIMEOUT = 10.0
_STUCK = (b"T", b"t", b"Z", b"X")  # states of a process that is stopped or has ended
_SOCKET, _DIRECTORY, _DEVICE = 0o140000, 0o040000, 0o020000


# The values of TRIO_SHIM_FORKSERVER; any other counts as ON, and is logged.
OFF = ("off", "0", "no")
ON = ("", "on", "1", "yes")


def is_enabled() -> bool:
    """Return whether the environment allows to use and to start a fork server."""
    return os.environ.get("TRIO_SHIM_FORKSERVER", "") not in OFF


def distrust(path: str) -> str:
    """Return why the socket at ``path`` cannot be trusted; empty if it can be.

    Another user who can create the socket could send this process any exit status, and
    a manager any address.

    :raises FileNotFoundError: the socket or its directory does not exist.
    """
    parent = path.rpartition("/")[0]
    for name, kind, title in ((parent, _DIRECTORY, "directory"), (path, _SOCKET, "socket")):
        info = os.lstat(name)
        if info.st_mode & 0o170000 != kind:
            return f"{name} is not a {title}"
        if info.st_uid != os.geteuid():
            return f"{name} belongs to user {info.st_uid}"
        if info.st_mode & 0o077:
            return f"others have rights to {name}: chmod go= {name}"
    return ""


def run_on_server(argv: list[str], deadline: float) -> tuple[int | None, str]:
    """Send the call to the fork server and print its answer, or an error at ``deadline``.

    Returns the exit status and an empty text.  If this process must do the work itself,
    returns None and a warning for the log, which can be empty.  ``deadline`` is on the
    monotonic clock.
    """
    path = socket_path()
    if not path:
        return None, ""
    try:
        reason = distrust(path)
    except FileNotFoundError:
        return None, ""
    except OSError as exc:
        reason = f"{exc.filename}: {exc.strerror}"
    if reason:
        return None, f"the fork server is not used: {reason}"
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        if sock.fileno() < 3:
            return None, ""  # fd 0, 1 or 2 is closed: the socket would be used as that fd
        if argv[-1] == "delete":
            return _converse(sock, path, argv, deadline)
        buffered, problem = buffer_stdin()
        if problem:
            return _fail(argv, problem), ""
        try:
            return _converse(sock, path, argv, deadline)
        finally:
            if buffered:
                os.lseek(0, 0, os.SEEK_SET)  # a child that was given up may have read it
    except (TimeoutError, BlockingIOError):
        return None, f"the fork server is not used: {path} does not answer"
    except OSError as exc:
        return None, f"the fork server is not used: {path}: {exc.strerror}"
    finally:
        sock.close()


def _fail(argv: list[str], problem: str) -> int:
    """Print the error ``problem`` as one line; return the exit status."""
    name = os.path.basename(argv[0])  # noqa: PTH119 - pathlib costs the launcher a millisecond
    os.write(2, os.fsencode(f"{name}: {problem}\n"))
    return 1


def _converse(
    sock: _socket.socket, path: str, argv: list[str], end: float
) -> tuple[int | None, str]:
    words = b"\0".join(os.fsencode(word) for word in ["run", *argv])
    if len(words) > _MAX_REQUEST:
        return None, ""
    began = time.monotonic()
    # Blocking with a timeout: on a non-blocking socket a full backlog is an error at once.
    timeout = int(_HEARD_TIMEOUT[argv[-1]] * 1e6)
    timeval = bytes(8) + timeout.to_bytes(8, sys.byteorder)
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, timeval)
    sock.connect(path)
    credentials = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    server, uid = (int.from_bytes(credentials[i : i + 4], sys.byteorder) for i in (0, 4))
    if uid != os.geteuid():
        return None, f"the fork server is not used: {path} is served by user {uid}"
    own = os.pidfd_open(os.getpid())
    try:
        fds = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, own))
        sock.sendmsg([words], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)])
    finally:
        os.close(own)
    deadline, peer = began + _HEARD_TIMEOUT[argv[-1]], server
    taken = _TAKEN_TIMEOUT[argv[-1]]
    needed = min(WORK[argv[-1]], LIMIT[argv[-1]] - taken)  # by the work
    latest = min(began + taken, max(deadline, end - needed))
    while True:
        packet, child = receive(sock, deadline, peer, latest)
        word, _, rest = packet.partition(b" ")
        if child >= 0:
            break
        if word == b"heard":
            deadline = latest
        elif word == b"child":
            peer = int(rest)
        else:
            return None, packet.decode(errors="replace")
    asked = time.monotonic()
    try:
        sock.send(b"go")
        latest = latest_answer(argv[-1], end)
        end = min(end, asked + WORK[argv[-1]])
        answer, _ = receive(sock, end, int(rest), latest)
        if answer.startswith(b"child "):  # the server sent this after the child's ``taken``
            answer, _ = receive(sock, end, int(rest), latest)
        if answer:
            status = print_answer(sock, answer)
            os.close(child)
            return status, ""
    except TimeoutError:
        now = time.monotonic()
        problem = late_problem(argv[-1], now - asked, int(rest)) if now >= end else ""
        # A child that waits for a disk cannot end: it is not waited for.
        kill_child(child, 0 if problem else _KILL_TIMEOUT)
        if problem and argv[-1] != "delete":
            return _fail(argv, problem), ""
        raise
    except BaseException:
        kill_child(child)
        raise
    kill_child(child)
    return None, ""


def receive(
    sock: _socket.socket, deadline: float, peer: int, latest: float = 0.0
) -> tuple[bytes, int]:
    """Return the next packet and its fd, -1 without one.  No bytes are the end.

    ``deadline`` is on the monotonic clock.  If ``peer``, the pid of the sender, is ready to
    run then, it waits for a processor, and the deadline is ``latest``, if that is later: on a
    busy machine, a caller that gives up starts a whole interpreter instead, or fails.  A
    packet that has arrived is returned after the deadline, too, as the caller itself may have
    waited for a processor.

    :raises TimeoutError: no packet arrived before the deadline, or ``peer`` is stopped or
        has ended.
    """
    stuck = sleeping = 0  # the number of ticks
    while True:
        left = deadline - time.monotonic()
        sock.settimeout(min(_TICK, left) if left > 0 else _TICK)
        try:
            packet, control, _, _ = sock.recvmsg(MAX_ANSWER, _socket.CMSG_SPACE(4))
            if not packet:  # the end, unless a packet came just before it: shim.linux.fdpassing
                packet, control, _, _ = sock.recvmsg(MAX_ANSWER, _socket.CMSG_SPACE(4))
        except TimeoutError:
            state = _state_of(peer)
            stuck = stuck + 1 if state in _STUCK else 0
            sleeping = 0 if state == b"R" else sleeping + 1
            now = time.monotonic()
            if stuck >= 2 or (now >= deadline and (sleeping > 2 or now >= latest)):
                raise
        else:
            fds = [data for level, kind, data in control if kind == _socket.SCM_RIGHTS]
            return packet, int.from_bytes(fds[0][:4], sys.byteorder) if fds else -1


def _state_of(pid: int) -> bytes:
    """Return the letter of a process's state, X without one.  Source: proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1]
    except OSError:
        return b"X"


def is_stuck(pid: int) -> bool:
    """Return whether a process is stopped or has ended."""
    return _state_of(pid) in _STUCK


def latest_answer(action: str, deadline: float) -> float:
    """Return when a child that waits for a processor is given up; ``deadline`` is its limit."""
    return deadline + BUSY - LIMIT[action] if action == "start" else 0.0


def late_problem(action: str, seconds: float, child: int) -> str:
    """Return the error of ``action`` if ``child`` has not answered within ``seconds``."""
    failed = "cannot start the shim" if action == "start" else f"cannot finish {action}"
    problem = f"{failed}: no answer within {int(seconds)} s"
    if _state_of(child) == b"R":
        return f"{problem}; the machine has no free processor, try again later"
    if action != "start":
        return problem
    try:
        here = os.getcwd()  # noqa: PTH109 - a plain string
    except OSError:
        here = "the bundle"  # it was removed
    return f"{problem}; check the disk of {here}, and see the manager's log"


def kill_child(pidfd: int, seconds: float = _KILL_TIMEOUT) -> None:
    """Kill a child of the fork server, and wait for its end, at most ``seconds``."""
    import select
    import signal

    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
    select.select([pidfd], [], [], seconds)


def encode_answer(status: int, output: bytes = b"", errors: bytes = b"") -> bytes:
    """Return the answer to a caller as one packet; ``errors`` is cut to fit into it.

    The packet is one byte of exit status, four bytes (big endian) with the length of
    ``output``, ``output``, and ``errors``.
    """
    head = bytes([status]) + len(output).to_bytes(4, "big") + output
    return head + errors[: MAX_ANSWER - len(head)]


def print_answer(sock: _socket.socket, answer: bytes) -> int:
    """Print a child's answer, acknowledge it on ``sock`` and return the exit status.

    :raises OSError: standard output or standard error cannot be written.
    """
    end = 5 + int.from_bytes(answer[1:5], "big")
    for fd, data in ((1, answer[5:end]), (2, answer[end:])):
        while data:
            data = data[os.write(fd, data) :]
    try:  # noqa: SIM105 - contextlib costs the launcher a millisecond
        sock.send(b"told")
    except OSError:
        pass  # the child has exited: only a daemon waits for this
    return answer[0]


def buffer_stdin() -> tuple[bool, str]:
    """Replace standard input by a copy in memory, unless it is a character device.

    A pipe can be read only once, and a child that has read it may be given up.  Returns
    whether standard input is a copy now, and an error, empty if there is none.
    """
    if os.fstat(0).st_mode & 0o170000 == _DEVICE:
        return False, ""
    import select

    memory = os.memfd_create("stdin")
    try:
        deadline = time.monotonic() + STDIN_TIMEOUT
        size = 0
        while size <= STDIN_LIMIT:
            if not select.select([0], [], [], max(0, deadline - time.monotonic()))[0]:
                return False, (
                    f"cannot read standard input: it was not closed within {STDIN_TIMEOUT:g} s; "
                    "close it or use /dev/null"
                )
            chunk = os.read(0, 1 << 16)
            if not chunk:
                os.lseek(memory, 0, os.SEEK_SET)
                os.dup2(memory, 0)
                return True, ""
            size += os.write(memory, chunk)
        return False, f"cannot read standard input: it is longer than {STDIN_LIMIT} bytes"
    finally:
        os.close(memory)


def main() -> int:
    """Run the executable; return its exit status, or exit if a fork server ran the call."""
    warning = ""
    deadline = time.monotonic() + LIMIT.get(sys.argv[-1], _OTHER)
    if sys.argv[-1] in LIMIT and is_enabled():
        status, warning = run_on_server(sys.argv, deadline)
        if status is not None:
            os._exit(status)  # the answer is written, and a regular exit takes 1 ms
        warning = run_on_new_server(warning, deadline)
    from shim.start.actions import main as run_here

    return run_here(warning, deadline)


def main_alone() -> int:
    """Run the executable after the native launcher has given the fork server up.

    The first argument is the time at which the launcher began, in milliseconds on the
    monotonic clock.
    """
    began = time.monotonic()
    if sys.argv[0].isdecimal():  # a launcher that an earlier version installed passes none
        began = int(sys.argv.pop(0)) / 1000
    deadline = began + LIMIT.get(sys.argv[-1], _OTHER)
    warning = run_on_new_server(
        f"the fork server is not used: {socket_path()} did not accept the call in time", deadline
    )
    from shim.start.actions import main as run_here

    return run_here(warning, deadline)


def listens(path: str) -> bool:
    """Return whether a process listens on the fork server's socket at ``path``."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        sock.setblocking(False)
        sock.connect(path)
    except BlockingIOError:
        return True  # its backlog is full
    except OSError:
        return False
    finally:
        sock.close()
    return True


def run_on_new_server(warning: str, deadline: float) -> str:
    """Make a fork server, run a ``start`` on it and exit.

    If that fails, return a warning for the log.  ``warning`` is that of the attempt to use
    a server; it is empty if there was none.
    """
    path = socket_path()
    if sys.argv[-1] != "start" or not path or (warning and listens(path)):
        return warning  # a server that is stopped or busy has not run the call
    from shim.start import newserver

    if not newserver.make(os.path.basename(sys.argv[0]), deadline - WORK["start"]):  # noqa: PTH119 - as above
        return warning or "the fork server is not used: none could be started"
    status, warning = run_on_server(sys.argv, deadline)
    if status is not None:
        os._exit(status)
    return warning


if __name__ == "__main__":
    sys.exit(main())
