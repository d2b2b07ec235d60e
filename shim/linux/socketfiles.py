"""The file of a unix socket: how it gets its name, what identifies it, and its removal.

A socket first has a temporary name.  It gets its own name by link(2), or by an exchange with
a dead socket, so a process that is stopped meanwhile delays no other one.  Whether a process
listens is found by :mod:`shim.linux.sockets`.

Source: link(2), rename(2) RENAME_EXCHANGE.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from shim.errors import InvalidError

# Bytes of a path that fit into sun_path before its NUL; managers cannot dial longer ones.
LONGEST = 107
# Exchanges until the sockets of starters that meet are back in their places.
_EXCHANGES = 100


def publish(draft: str, name: str, dead: tuple[int, ...] | None) -> bool:
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

    own = identity(draft)
    try:
        exchange(draft, name)
        if identity(draft) == dead:
            return True
        # The dead one was replaced meanwhile.  Several starters may have exchanged the live
        # one: it is back at ``name`` when each has its own socket again.
        for _ in range(_EXCHANGES):
            exchange(draft, name)
            if identity(draft) == own:
                break
    except FileNotFoundError:
        pass  # it was removed meanwhile
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        remove(name, dead)
    return False


def temporary_name(directory: str, base: str) -> str:
    """Return a free temporary name for the socket ``base``; it begins with a dot."""
    unique = os.urandom(4).hex()
    draft = f"{directory}/.{base}.{unique}"
    # The kernel shows this name in /proc/net/unix, so it contains ``base`` where that fits.
    return draft if len(os.fsencode(draft)) <= LONGEST else f"{directory}/.{unique}"


def identity(path: str) -> tuple[int, ...] | None:
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


def remove(path: str, dead: tuple[int, ...]) -> None:
    """Remove the socket at ``path`` if it still is ``dead``.

    Another process may have replaced it since this process found it dead.  So the file
    is renamed before it is compared, and gets its name back if it is another one.  A third
    process could bind the address meanwhile; :func:`shim.linux.sockets.listen` does it otherwise.
    """
    with contextlib.suppress(FileNotFoundError):
        if identity(path) != dead:
            return
        directory, _, base = path.rpartition("/")
        aside = temporary_name(directory or ".", base)
        os.rename(path, aside)  # noqa: PTH104 - pathlib costs the launcher 3 ms
        if identity(aside) != dead:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        os.unlink(aside)  # noqa: PTH108 - as above


def links(path: str) -> list[str]:
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
