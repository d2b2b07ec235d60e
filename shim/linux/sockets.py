"""Names, binds and connects the unix sockets of shims.

An address is ``unix://`` and a path, or the bare name of an abstract socket.
Two ``start`` calls for one pod bind the same address.  Only the first one succeeds; the second
one uses the first one's socket.

Source: containerd pkg/shim/util_unix.go (SocketAddress, AnonDialer), unix(7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import socket
import struct
from typing import TYPE_CHECKING

from shim.errors import ExistsError, InvalidError, TimedOutError, UnavailableError
from shim.linux import socketfiles
from shim.linux.modes import make_trusted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import trio

SOCKET_DIR = "/run/containerd/s"

# Attempts to take over a dead socket.  In each, another process may take it over first
# and then end; after the last attempt the address counts as in use.
_ATTEMPTS = 5
# Connections that may wait for accept(2).
BACKLOG = 128
# Seconds between two attempts at a socket whose backlog is full.
PAUSE = 0.005


def socket_address(
    grpc_address: str, namespace: str, group: str, socket_dir: str = SOCKET_DIR
) -> str:
    """Return the address of the shim that serves ``group``."""
    # Loading OpenSSL takes longer than the rest of the launcher.
    import hashlib

    name = hashlib.sha256(os.fsencode(_join(grpc_address, namespace, group))).hexdigest()
    return f"unix://{socket_dir}/{name}"


def _join(*parts: str) -> str:
    """Join as Go's path.Join: empty parts do not count, the result is clean."""
    joined = "/".join(part for part in parts if part)
    if not joined:
        return ""
    clean = posixpath.normpath(joined)
    # POSIX lets exactly two leading slashes mean something else; Go does not.
    return clean[1:] if clean.startswith("//") else clean


def socket_path(address: str) -> str:
    """Return the path in ``address``; empty for an abstract socket."""
    return address.removeprefix("unix://") if address.startswith("unix://") else ""


def _name(address: str) -> str:
    """Return the argument of bind and connect for ``address``."""
    path = socket_path(address)
    name = path or "\0" + address
    length = len(os.fsencode(name))
    if length > socketfiles.LONGEST:
        raise InvalidError(
            f"socket address {address} has {length} bytes and the limit is {socketfiles.LONGEST}; "
            "use a socket directory of at most 42 bytes"
        )
    if not address:
        raise InvalidError("the socket address is empty")
    if "\0" in address:  # the kernel would end the name there
        raise InvalidError(f"socket address {address!r} holds a NUL byte")
    return name


def listen(address: str, backlog: int = BACKLOG, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Bind ``address`` and listen; replace the socket of a process that has ended.

    The socket is blocking and not inherited.  Only processes of our user may connect.

    The socket first listens under a temporary name, and is then linked to the name in
    ``address``, or exchanged with the dead socket there.  So a socket at ``address`` that
    refuses connections is always dead, and two processes never get the same name.  No lock
    is held, so a process that is stopped in this function does not delay another one.

    :raises ExistsError: another process listens there.
    :raises InvalidError: the path is too long, the file there is not a socket, or
        another user could replace its directory.
    """
    name = _name(address)
    if not socket_path(address):
        return _bind(address, name, backlog, kind)
    directory, _, base = name.rpartition("/")
    make_trusted(directory or ".")
    dead = _find_dead(address, name)
    draft = socketfiles.temporary_name(directory or ".", base)
    sock = _bind(address, draft, backlog, kind)
    try:
        for _ in range(_ATTEMPTS):
            if socketfiles.publish(draft, name, dead):
                return sock
            dead = _find_dead(address, name)
        raise ExistsError(f"{address}: another process listens there")  # noqa: TRY301 - the except closes
    except BaseException:
        sock.close()
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)  # noqa: PTH108 - pathlib costs the launcher 3 ms


def add_address(address: str, other: str) -> None:
    """Give the socket that this process has bound to ``address`` the address ``other``, too.

    Both must be paths in one file system.  A second call changes nothing.

    :raises ExistsError: another process listens at ``other``.
    :raises InvalidError: as in :func:`listen`.
    """
    own, name = _name(address), _name(other)
    directory, _, base = name.rpartition("/")
    for _ in range(_ATTEMPTS):
        if socketfiles.identity(own) == socketfiles.identity(name):
            return
        dead = _find_dead(other, name)
        draft = socketfiles.temporary_name(directory or ".", base)
        os.link(own, draft)
        try:
            if socketfiles.publish(draft, name, dead):
                return
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)  # noqa: PTH108 - as below
    raise ExistsError(f"{other}: another process listens there")


def remove_address(address: str, other: str) -> None:
    """Remove ``other``, an address that :func:`add_address` gave the socket at ``address``."""
    own, name = _name(address), _name(other)
    if (found := socketfiles.identity(own)) is not None:
        socketfiles.remove(name, found)


def take_over(listener: socket.socket, backlog: int = BACKLOG) -> None:
    """Make this process the peer of new clients of ``listener``, which another one bound.

    Source: unix(7) SO_PEERCRED: the credentials are those of the last listen(2).
    """
    listener.listen(backlog)


def accept_of(listener: socket.socket) -> Callable[[], tuple[int, object]]:
    """Return a function that accepts a connection: it returns the fd, close-on-exec, first.

    ``listener.accept`` makes an object for it, which takes longer than the system call.
    """
    accept: Callable[[], tuple[int, object]] = listener._accept  # type: ignore[attr-defined]
    return accept


def _bind(address: str, name: str, backlog: int, kind: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        # bind(2) creates it with mode 0600: clients check the mode before they trust it.
        umask = os.umask(0o177)
        try:
            sock.bind(name)
        finally:
            os.umask(umask)
        sock.listen(backlog)
    except OSError as exc:
        sock.close()
        if exc.errno == errno.EADDRINUSE:
            raise ExistsError(f"{address}: another process listens there") from None
        raise
    return sock


def _find_dead(address: str, path: str) -> tuple[int, ...] | None:
    """Return the identity of the dead socket at ``path``, None if there is no socket.

    :raises ExistsError: a process listens there.
    :raises InvalidError: the file at ``path`` is not a socket.
    """
    found = socketfiles.identity(path)
    if found is not None and can_connect(address):
        raise ExistsError(f"{address}: another process listens there")
    return found


def remove_bound(listener: socket.socket, address: str) -> None:
    """Remove the socket that ``listener`` is bound to, with its other addresses, and close it."""
    # No other process can have replaced the socket while its listener is open.
    path = socket_path(address)
    for name in (*socketfiles.links(path), path):
        with contextlib.suppress(OSError):
            os.unlink(name)  # noqa: PTH108 - a plain string
    listener.close()


def identity_of(address: str) -> tuple[int, ...] | None:
    """Return a value for :func:`remove` that no other socket has; None without a socket."""
    return socketfiles.identity(_name(address)) if socket_path(address) else None


def remove(address: str, identity: tuple[int, ...]) -> None:
    """Remove the socket with ``identity`` at ``address``, with its other addresses."""
    name = _name(address)
    with contextlib.suppress(OSError, InvalidError):
        for other in (*socketfiles.links(name), name):
            socketfiles.remove(other, identity)


def remove_dead(address: str) -> None:
    """Remove the socket that a dead shim left at ``address``, with its other addresses.

    The socket of a live shim is kept.

    :raises InvalidError: the file there is not a socket.
    """
    name = _name(address)
    with contextlib.suppress(ExistsError):
        if socket_path(address) and (dead := _find_dead(address, name)) is not None:
            for other in socketfiles.links(name):
                socketfiles.remove(other, dead)
            socketfiles.remove(name, dead)


def can_connect(address: str) -> bool:
    """Return whether a process listens on ``address``, without waiting."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(_name(address))
        except BlockingIOError:
            return True  # its backlog is full, so a process listens
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return False
        except OSError as exc:
            if exc.errno != errno.EPROTOTYPE:
                raise
            return True  # a socket of another kind is bound there
        return True


async def connect(address: str, timeout: float = 5) -> trio.SocketStream:
    """Connect to ``address`` within ``timeout`` seconds.

    :raises UnavailableError: no process listens there.
    :raises TimedOutError: a process listens, but did not accept the connection.
    """
    import trio  # the launcher listens without it

    with connecting(address, timeout, trio.current_time) as (sock, pauses):
        for pause in pauses:
            await trio.sleep(pause)
        return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


@contextlib.contextmanager
def connecting(
    address: str, timeout: float, now: Callable[[], float]
) -> Iterator[tuple[socket.socket, Iterator[float]]]:
    """Give a non-blocking socket and the pauses to make, after which it is connected.

    An error in the block closes the socket.  ``now`` is the clock of the ``timeout``.  Frameworks
    do not connect it themselves: they take the EAGAIN of a full backlog for "in progress".

    :raises UnavailableError: no process listens there.
    :raises TimedOutError: a process listens, but did not accept the connection.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        yield sock, _pauses(sock, address, timeout, now)
    except BaseException:
        sock.close()
        raise


def _pauses(
    sock: socket.socket, address: str, timeout: float, now: Callable[[], float]
) -> Iterator[float]:
    deadline = now() + timeout
    while not try_connect(sock, address):
        if now() >= deadline:
            raise TimedOutError(f"{address} accepted no connection in {timeout:g} s")
        yield PAUSE


def connect_blocking(address: str, seconds: float) -> socket.socket:
    """Return a connected socket, each call on which fails after ``seconds``.

    :raises UnavailableError: no process listens there.
    :raises BlockingIOError: the connection was not accepted within ``seconds``.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Python's settimeout() makes a socket non-blocking: with a full backlog,
        # connect would fail at once.
        timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, timeval)
        if not try_connect(sock, address):
            text = f"{address} accepted no connection in {seconds:g} s"
            raise BlockingIOError(errno.EAGAIN, text)  # noqa: TRY301 - the except closes
    except BaseException:
        sock.close()
        raise
    return sock


def try_connect(sock: socket.socket, address: str) -> bool:
    """Connect ``sock``; False if the backlog is full (the kernel reports no event for room).

    :raises UnavailableError: no process listens there.
    """
    try:
        sock.connect(_name(address))
    except BlockingIOError:
        return False
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as exc:
        raise UnavailableError(f"no process listens on {address}: {exc.strerror}") from None
    return True
