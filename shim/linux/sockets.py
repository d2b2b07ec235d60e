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
import stat
import struct
from typing import TYPE_CHECKING

from shim.errors import ExistsError, InvalidError, TimedOutError, UnavailableError
from shim.linux.modes import make_trusted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import trio

SOCKET_DIR = "/run/containerd/s"

# Bytes of a path that fit into sun_path before its NUL; managers cannot dial longer ones.
_LONGEST = 107
# Attempts to take over a dead socket.  In each, another process may take it over first
# and then end; after the last attempt the address counts as in use.
_ATTEMPTS = 5
# Exchanges until the sockets of starters that meet are back in their places.
_EXCHANGES = 100
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
    if length > _LONGEST:
        raise InvalidError(
            f"socket address {address} has {length} bytes and the limit is {_LONGEST}; "
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
    draft = _draft(directory or ".", base)
    sock = _bind(address, draft, backlog, kind)
    try:
        for _ in range(_ATTEMPTS):
            if _publish(draft, name, dead):
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
        if _identity(own) == _identity(name):
            return
        dead = _find_dead(other, name)
        draft = _draft(directory or ".", base)
        os.link(own, draft)
        try:
            if _publish(draft, name, dead):
                return
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)  # noqa: PTH108 - as below
    raise ExistsError(f"{other}: another process listens there")


def remove_address(address: str, other: str) -> None:
    """Remove ``other``, an address that :func:`add_address` gave the socket at ``address``."""
    own, name = _name(address), _name(other)
    if (found := _identity(own)) is not None:
        _remove(name, found)


def _publish(draft: str, name: str, dead: tuple[int, ...] | None) -> bool:
    """Move our socket from ``draft`` to ``name``, in the place of ``dead``.

    Return False if there was another socket at ``name``: that one is there again.
    """
    if dead is None:
        try:
            os.link(draft, name)
        except FileExistsError:
            return False
        return True
    from shim.linux.libc import exchange  # the launcher does without ctypes

    own = _identity(draft)
    try:
        exchange(draft, name)
        if _identity(draft) == dead:
            return True
        # The dead one was replaced meanwhile.  Several starters may have exchanged the live
        # one: it is back at ``name`` when each has its own socket again.
        for _ in range(_EXCHANGES):
            exchange(draft, name)
            if _identity(draft) == own:
                break
    except FileNotFoundError:
        pass  # it was removed meanwhile
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        _remove(name, dead)
    return False


def _draft(directory: str, base: str) -> str:
    """Return a free temporary name for the socket ``base``; it begins with a dot."""
    unique = os.urandom(4).hex()
    draft = f"{directory}/.{base}.{unique}"
    # The kernel shows this name in /proc/net/unix, so it contains ``base`` where that fits.
    return draft if len(os.fsencode(draft)) <= _LONGEST else f"{directory}/.{unique}"


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
    found = _identity(path)
    if found is not None and can_connect(address):
        raise ExistsError(f"{address}: another process listens there")
    return found


def _identity(path: str) -> tuple[int, ...] | None:
    """Return the device, inode and mtime of the socket at ``path``; None without a socket.

    :raises InvalidError: the file at ``path`` is not a socket.
    """
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISSOCK(info.st_mode):
        raise InvalidError(f"{path} exists and is not a socket; remove it")
    return info.st_dev, info.st_ino, info.st_mtime_ns


def _remove(path: str, dead: tuple[int, ...]) -> None:
    """Remove the socket at ``path`` if it still is ``dead``.

    Another process may have replaced it since this process found it dead.  So the file
    is renamed before it is compared, and gets its name back if it is another one.  A third
    process could bind the address meanwhile; :func:`listen` does it otherwise.
    """
    with contextlib.suppress(FileNotFoundError):
        if _identity(path) != dead:
            return
        directory, _, base = path.rpartition("/")
        aside = _draft(directory or ".", base)
        os.rename(path, aside)  # noqa: PTH104 - pathlib costs the launcher 3 ms
        if _identity(aside) != dead:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        os.unlink(aside)  # noqa: PTH108 - as above


def remove_bound(listener: socket.socket, address: str) -> None:
    """Remove the socket that ``listener`` is bound to, with its other addresses, and close it."""
    # No other process can have replaced the socket while its listener is open.
    path = socket_path(address)
    for name in (*_links(path), path):
        with contextlib.suppress(OSError):
            os.unlink(name)  # noqa: PTH108 - a plain string
    listener.close()


def identity_of(address: str) -> tuple[int, ...] | None:
    """Return a value for :func:`remove` that no other socket has; None without a socket."""
    return _identity(_name(address)) if socket_path(address) else None


def remove(address: str, identity: tuple[int, ...]) -> None:
    """Remove the socket with ``identity`` at ``address``, with its other addresses."""
    name = _name(address)
    with contextlib.suppress(OSError, InvalidError):
        for other in (*_links(name), name):
            _remove(other, identity)


def remove_dead(address: str) -> None:
    """Remove the socket that a dead shim left at ``address``, with its other addresses.

    The socket of a live shim is kept.

    :raises InvalidError: the file there is not a socket.
    """
    name = _name(address)
    with contextlib.suppress(ExistsError):
        if socket_path(address) and (dead := _find_dead(address, name)) is not None:
            for other in _links(name):
                _remove(other, dead)
            _remove(name, dead)


def _links(path: str) -> list[str]:
    """Return the other names of the socket at ``path`` in its directory."""
    try:
        info = os.lstat(path)
        if info.st_nlink < 2:
            return []
        directory, _, base = path.rpartition("/")
        with os.scandir(directory or ".") as entries:
            names = [one.name for one in entries if one.inode() == info.st_ino]
    except OSError:
        return []
    return [f"{directory or '.'}/{name}" for name in names if name != base]


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
