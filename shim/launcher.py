"""The executable's fast path: hand the call to a warm fork server, and wait.

Imports next to nothing: each module of the standard library costs a manager's
``start`` milliseconds.  Where there is no fork server, or none to be trusted,
the same work is done in this process, which takes longer and is as good.

A fork server serves those who are exactly like it: same build, user,
namespaces, cgroup, capabilities and security label.  All of that is in the name
of its socket.  What differs from call to call (arguments, environment, working
directory, standard fds, umask, limits) it takes from the caller.

The conversation: we send our arguments, separated by NUL, and fds 0, 1 and 2;
one byte comes back, the exit status.  If the connection ends without it, then
nothing was done that outlives it.
"""

from __future__ import annotations

import os
import sys

from shim.version import VERSION

DIRECTORY = "/run/trio-shim-forkserver"
# Seconds to be accepted, and to be answered: more than any action takes.
_CONNECT = 1
_ANSWER = 15.0
# Bytes of a request that a socket's buffer takes at once, so that it arrives whole.
_REQUEST = 32768
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_STATUS = ("Cap", "NoNewPrivs", "Seccomp:")
_SOCKET, _DIRECTORY = 0o140000, 0o040000


def directory() -> str:
    return os.environ.get("TRIO_SHIM_FORKSERVER_DIR", DIRECTORY)


def wanted() -> bool:
    """Say whether a fork server may be used and left behind."""
    return os.environ.get("TRIO_SHIM_FORKSERVER", "") not in ("off", "0", "no")


def socket_path() -> str:
    """Return where the fork server for a process like this one listens.

    The name is an FNV-1a hash of 64 bits, which the native launcher computes
    too.  It keeps apart what differs by accident; that nobody else can put a
    socket there is the directory's business.
    """
    value = 0xCBF29CE484222325
    for byte in identity().encode(errors="surrogateescape"):
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{directory()}/{value:016x}"


def identity() -> str:
    """Return everything about this process that a daemon inherits and cannot change."""
    package = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - see above
    lines = [VERSION, package, sys.executable, f"{os.geteuid()} {os.getegid()}"]
    for name in _NAMESPACES:
        try:
            lines.append(os.readlink(f"/proc/self/ns/{name}"))  # noqa: PTH115
        except OSError:
            lines.append(name)
    lines.append(_read("/proc/self/cgroup"))
    lines.append(_read("/proc/self/attr/current").rstrip("\0\n"))
    status = _read("/proc/self/status").split("\n")
    lines += [line for line in status if line.startswith(_STATUS)]
    return "\n".join(lines)


def _read(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return os.fsdecode(file.read())
    except OSError:
        return ""


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


def ask(argv: list[str]) -> tuple[int | None, str]:
    """Let the fork server do it.

    Returns the exit status, or None and perhaps a warning if it must be done here.
    """
    import _socket

    path = socket_path()
    try:
        reason = distrust(path)
    except FileNotFoundError:
        return None, ""
    if reason:
        return None, f"the fork server is not used: {reason}"
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        if sock.fileno() < 3:
            return None, ""  # one of our own is closed, and this would be taken for it
        # Blocking, or a full backlog would be an error at once.
        patience = _CONNECT.to_bytes(8, sys.byteorder) + bytes(8)
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, patience)
        sock.connect(path)
        credentials = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        uid = int.from_bytes(credentials[4:8], sys.byteorder)
        if uid != os.geteuid():
            return None, f"the fork server is not used: {path} is served by user {uid}"
        payload = b"\0".join(os.fsencode(word) for word in ["run", *argv])
        if len(payload) > _REQUEST:
            return None, ""
        fds = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, 1, 2))
        sock.sendmsg([payload], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)])
        sock.shutdown(_socket.SHUT_WR)
        sock.settimeout(_ANSWER)
        answer = sock.recv(1)
    except (TimeoutError, BlockingIOError):
        return None, f"the fork server is not used: {path} does not answer"
    except OSError as exc:
        return None, f"the fork server is not used: {path}: {exc.strerror}"
    finally:
        sock.close()
    return (answer[0], "") if answer else (None, "")


def main() -> int:
    """Run the executable; return its exit status, unless another process has done it all."""
    warning = ""
    if sys.argv[-1] in ("start", "delete", "-info") and wanted():
        status, warning = ask(sys.argv)
        if status is not None:
            os._exit(status)  # we have said nothing, and the interpreter's own end takes 1 ms
    from shim.__main__ import main as run_here

    return run_here(warning)


if __name__ == "__main__":
    sys.exit(main())
