"""The executable's fast path: hand the call to a warm fork server, and wait.

Imports next to nothing: each module of the standard library costs a manager's
``start`` milliseconds.  Where there is no fork server, or none to be trusted,
the same work is done in this process, which takes longer and is as good.

A fork server serves those that would hand the same on to a child
(:mod:`shim.start.identity`).  What differs from call to call (arguments, environment,
working directory, standard input, umask, nice, affinity, limits) its child
takes from the caller.

The conversation, one packet each:

    caller   ``run`` and its arguments, separated by NUL; its standard input and
             a pidfd of itself
    server   ``heard``: it is alive, and the call waits for its turn
    server   ``child`` and the pid of the one that has it
    child    ``taken`` and its pid; a pidfd of itself
    caller   ``go``
    child    exit status, standard output, standard error
    caller   ``told``

The child does nothing before ``go``.  From then on the caller can kill it, and
does so before it does the work itself.  So a process that is stopped at any
point of the conversation never carries out a request that was given up.  Only
the caller writes to its standard output and standard error.  A daemon whose
caller ends without ``told`` ends too.
"""

from __future__ import annotations

import _socket
import os
import sys
import time

from shim.start.identity import socket_path

# Seconds until a server that says nothing is given up, and one that has heard and has
# many callers: a manager gives ``delete`` five seconds in all.  A server or a child
# that is stopped is given up after two ticks.
_HEARD_TIMEOUT = {"start": 0.9, "-info": 0.9, "delete": 0.4}
_TAKEN_TIMEOUT = {"start": 5.0, "-info": 5.0, "delete": 0.9}
# Seconds from ``go`` to the answer: more than any action takes.
_ANSWER_TIMEOUT = {"start": 15.0, "-info": 10.0, "delete": 4.0}
_TICK = 0.1
# Seconds for a child to end that was killed.
_KILL_TIMEOUT = 1.0
# Bytes of a request that a socket's buffer takes at once, and of an answer.
_MAX_REQUEST = 32768
MAX_ANSWER = 65536
# Bytes of stdin that are read at most, and seconds for the caller to close it.
STDIN_LIMIT = 10 << 20
STDIN_TIMEOUT = 10.0
_SOCKET, _DIRECTORY, _DEVICE = 0o140000, 0o040000, 0o020000


# The values of TRIO_SHIM_FORKSERVER; any other counts as ON, and is logged.
OFF = ("off", "0", "no")
ON = ("", "on", "1", "yes")


def is_enabled() -> bool:
    """Say whether a fork server may be used and left behind."""
    return os.environ.get("TRIO_SHIM_FORKSERVER", "") not in OFF


def distrust(path: str) -> str:
    """Say why the socket at ``path`` is not to be trusted; empty if it is.

    Whoever could have put it there could give us any exit status, and a
    manager any address.
    """
    parent = path.rpartition("/")[0]
    for name, kind in ((parent, _DIRECTORY), (path, _SOCKET)):
        info = os.lstat(name)
        if info.st_mode & 0o170000 != kind:
            return f"{name} is not what it should be"
        if info.st_uid != os.geteuid():
            return f"{name} belongs to user {info.st_uid}"
        if info.st_mode & 0o077:
            return f"others have rights to {name}: chmod go= {name}"
    return ""


def run_on_server(argv: list[str]) -> tuple[int | None, str]:
    """Let the fork server do it.

    Returns the exit status, or None and perhaps a warning if it must be done here.
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
            return None, ""  # one of our own is closed, and this would be taken for it
        if argv[-1] == "delete":
            return _converse(sock, path, argv)
        buffered, problem = buffer_stdin()
        if problem:
            os.write(2, f"{os.path.basename(argv[0])}: {problem}\n".encode())  # noqa: PTH119 - as above
            return 1, ""
        try:
            return _converse(sock, path, argv)
        finally:
            if buffered:
                os.lseek(0, 0, os.SEEK_SET)  # a child may have read it, and be given up
    except (TimeoutError, BlockingIOError):
        return None, f"the fork server is not used: {path} does not answer"
    except OSError as exc:
        return None, f"the fork server is not used: {path}: {exc.strerror}"
    finally:
        sock.close()


def _converse(sock: _socket.socket, path: str, argv: list[str]) -> tuple[int | None, str]:
    words = b"\0".join(os.fsencode(word) for word in ["run", *argv])
    if len(words) > _MAX_REQUEST:
        return None, ""
    began = time.monotonic()
    # Blocking, or a full backlog would be an error at once.
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
    while True:
        packet, child = _receive(sock, deadline, peer)
        word, _, rest = packet.partition(b" ")
        if child >= 0:
            break
        if word == b"heard":
            deadline = began + _TAKEN_TIMEOUT[argv[-1]]
        elif word == b"child":
            peer = int(rest)
        else:
            return None, packet.decode(errors="replace")
    try:
        sock.send(b"go")
        deadline = time.monotonic() + _ANSWER_TIMEOUT[argv[-1]]
        answer, _ = _receive(sock, deadline, int(rest))
        if answer.startswith(b"child "):  # the server was slower to say so than the child
            answer, _ = _receive(sock, deadline, int(rest))
        if answer:
            status = print_answer(sock, answer)
            os.close(child)
            return status, ""
    except BaseException:
        kill_child(child)
        raise
    kill_child(child)
    return None, ""


def _receive(sock: _socket.socket, deadline: float, peer: int) -> tuple[bytes, int]:
    """Return the next packet and the fd that came with it, or -1; no bytes for the end.

    :raises TimeoutError: there was none until ``deadline``, or the process
        ``peer``, which is to send it, is stopped or has ended.
    """
    stuck = 0
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or stuck >= 2:
            raise TimeoutError
        sock.settimeout(min(_TICK, left))
        try:
            packet, control, _, _ = sock.recvmsg(MAX_ANSWER, _socket.CMSG_SPACE(4))
        except TimeoutError:
            stuck = stuck + 1 if is_stuck(peer) else 0
        else:
            fds = [data for level, kind, data in control if kind == _socket.SCM_RIGHTS]
            return packet, int.from_bytes(fds[0][:4], sys.byteorder) if fds else -1


def is_stuck(pid: int) -> bool:
    """Say whether a process is stopped, or has ended.  Source: proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] in (b"T", b"t", b"Z", b"X")
    except OSError:
        return True


def kill_child(pidfd: int) -> None:
    """Kill a child of the fork server, and wait until it is gone."""
    import select
    import signal

    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
    select.select([pidfd], [], [], _KILL_TIMEOUT)


def encode_answer(status: int, output: bytes = b"", errors: bytes = b"") -> bytes:
    """Return the packet that answers a caller; what is too long of ``errors`` is cut off."""
    head = bytes([status]) + len(output).to_bytes(4, "big") + output
    return head + errors[: MAX_ANSWER - len(head)]


def print_answer(sock: _socket.socket, answer: bytes) -> int:
    """Write out what a child answered, and tell it so; return its exit status.

    :raises OSError: nobody reads it.
    """
    end = 5 + int.from_bytes(answer[1:5], "big")
    for fd, data in ((1, answer[5:end]), (2, answer[end:])):
        while data:
            data = data[os.write(fd, data) :]
    try:  # noqa: SIM105 - contextlib costs the launcher a millisecond
        sock.send(b"told")
    except OSError:
        pass  # it has not waited: only a daemon does
    return answer[0]


def buffer_stdin() -> tuple[bool, str]:
    """Make standard input a file in memory, unless it is a device.

    A pipe can be read only once, and a child that reads it may have to be given up.
    Returns whether it is one now, and what is wrong with it, or nothing.
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
                    f"standard input stayed open for {STDIN_TIMEOUT:g} s: "
                    "close it or give /dev/null"
                )
            chunk = os.read(0, 1 << 16)
            if not chunk:
                os.lseek(memory, 0, os.SEEK_SET)
                os.dup2(memory, 0)
                return True, ""
            size += os.write(memory, chunk)
        return False, f"standard input is longer than {STDIN_LIMIT} bytes"
    finally:
        os.close(memory)


def main() -> int:
    """Run the executable; return its exit status, unless another process has done it all."""
    warning = ""
    if sys.argv[-1] in _ANSWER_TIMEOUT and is_enabled():
        status, warning = run_on_server(sys.argv)
        if status is not None:
            os._exit(status)  # all is written, and the interpreter's own end takes 1 ms
    from shim.start.actions import main as run_here

    return run_here(warning)


def main_alone() -> int:
    """Run the executable after the native launcher has given up the fork server."""
    from shim.start.actions import main as run_here

    return run_here(f"the fork server is not used: {socket_path()} did not take the call in time")


if __name__ == "__main__":
    sys.exit(main())
