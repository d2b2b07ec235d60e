"""Make directories, files and fifos with a given mode, independent of the umask.

mkdir(2), open(2) and mkfifo(2) clear the umask's bits in the mode.  With a manager's
umask of 0, files would be writable by every user; with 077, the manager's other
programs could not read them.  Therefore the mode is set again after the creation; until
then it never has more permissions than requested.

The parents of a path are checked from the root down before anything is created below
them.  A directory that another user owns or may write to is rejected: that user could
rename its entries and put others in their place.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from shim.errors import InvalidError, UnavailableError
from shim.text import doing

# The mode of containerd's state directories: other users may traverse, but not list them.
_PASS = 0o711
# Links that the kernel follows in one path, see path_resolution(7).
_LINKS = 40


def write_file(path: str | os.PathLike[str], data: str | bytes, mode: int = 0o600) -> None:
    """Replace the content of the file at ``path``; create it if it is missing.

    :raises OSError: it cannot be written.
    """
    if isinstance(data, str):
        data = data.encode(errors="surrogateescape")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with doing("open", path):
        fd = os.open(path, flags, mode)
    try:
        if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
            with suppress(PermissionError):  # a file system without modes
                os.fchmod(fd, mode)
        with doing("write", path):
            while data:
                data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def make_fifo(path: str | os.PathLike[str], mode: int = 0o600) -> None:
    """Create a fifo.

    :raises FileExistsError: there is something at ``path``.
    """
    with doing("mkfifo", path):
        os.mkfifo(path, mode)
    _set(path, mode)


def make_directory(
    path: str | os.PathLike[str], mode: int = 0o700, *, exist_ok: bool = False
) -> None:
    """Create one directory; its parent must exist.  One that exists keeps its mode.

    :raises FileExistsError: ``path`` exists; with ``exist_ok``, it is not a directory.
    """
    try:
        with doing("mkdir", path):
            os.mkdir(path, mode)  # noqa: PTH102 - pathlib costs the launcher 3 ms
    except FileExistsError:
        if not exist_ok or not os.path.isdir(path):  # noqa: PTH112
            raise
    else:
        _set(path, mode)


def make_directories(
    path: str | os.PathLike[str], mode: int = 0o700, *, parents: int = _PASS
) -> None:
    """Create a directory and its missing parents.  Existing directories keep their mode.

    :raises OSError: a directory cannot be created.
    """
    whole = os.fspath(path).rstrip("/") or "/"
    if os.path.isdir(whole):  # noqa: PTH112
        return
    if above := os.path.dirname(whole):  # noqa: PTH120
        try:
            make_directories(above, parents, parents=parents)
        except (FileExistsError, NotADirectoryError):  # raise as mkdir(2) does for a parent
            text = os.strerror(errno.ENOTDIR)
            raise NotADirectoryError(errno.ENOTDIR, text, whole) from None
    make_directory(whole, mode, exist_ok=True)


def _set(path: str | os.PathLike[str], mode: int) -> None:
    if stat.S_IMODE(os.lstat(path).st_mode) != mode:
        with suppress(PermissionError):  # a file system without modes
            os.chmod(path, mode)  # noqa: PTH101


def make_trusted(path: str, mode: int = 0o700) -> None:
    """Create a directory that no other user can replace, and its missing parents.

    :raises InvalidError: another user owns it or one of its parents, or may write there.
    :raises OSError: a directory cannot be created.
    """
    _walk(path, mode)


def check_trusted(path: str) -> None:
    """Check that no other user can replace the directory at ``path``.

    :raises InvalidError: another user owns it or one of its parents, or may write there.
    :raises OSError: it does not exist, or lstat(2) fails.
    """
    _walk(path, None)


def _walk(path: str, mode: int | None) -> None:
    """Check each directory in ``path``; with a ``mode``, create the missing ones."""
    start = "/" if path.startswith("/") else os.getcwd()  # noqa: PTH109
    if start != "/":
        path = f"{start}/{path}"
    parts = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    here, links = "/", 0
    _check("/", os.lstat("/"))
    while parts:
        part = parts.pop()
        if part == "..":
            here = os.path.dirname(here)  # noqa: PTH120 - there is no link in it
            continue
        below = f"{here.rstrip('/')}/{part}"
        try:
            found = os.lstat(below)
        except FileNotFoundError:
            if mode is None:
                raise
            # Another process may create it at the same time.
            make_directory(below, _PASS if parts else mode, exist_ok=True)
            found = os.lstat(below)
        _check(below, found)
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > _LINKS:
                raise InvalidError(f"{path} goes through more than {_LINKS} links")
            target = os.readlink(below)  # noqa: PTH115
            if target.startswith("/"):
                here = "/"
            parts += [part for part in reversed(target.split("/")) if part not in ("", ".")]
        else:
            here = below


def _check(path: str, found: os.stat_result) -> None:
    """Reject a directory or a link that another user could replace or write to.

    Directories of root and of our own user are trusted.  Other users may write if the
    sticky bit protects our entries (/tmp).  A group may write if it is the owner's private
    group: by convention its gid is equal to the owner's uid.
    """
    if found.st_uid not in (0, os.geteuid()) and not _is_outside(found.st_uid):
        raise InvalidError(
            f"{path} belongs to user {found.st_uid}, which could replace files in it: "
            f"chown root {path}, or use another directory"
        )
    if stat.S_ISLNK(found.st_mode):
        return
    if not stat.S_ISDIR(found.st_mode):
        raise InvalidError(f"{path} is not a directory; remove it, or use another path")
    others = stat.S_IWOTH if found.st_gid == found.st_uid else stat.S_IWOTH | stat.S_IWGRP
    if found.st_mode & others and not found.st_mode & stat.S_ISVTX:
        raise InvalidError(
            f"other users may write to {path} (mode {stat.S_IMODE(found.st_mode):04o}): "
            f"chmod go-w {path}, or use another directory"
        )


def _is_outside(uid: int) -> bool:
    """Return whether ``uid`` is the overflow uid of users outside our user namespace.

    The host's root is such a user: a rootless manager uses the host's / and /run.
    """
    try:
        with open("/proc/self/uid_map") as file:
            if file.read().split() == ["0", "0", "4294967295"]:
                return False
        with open("/proc/sys/kernel/overflowuid") as file:
            return uid == int(file.read())
    except (OSError, ValueError):
        return False


def make_private_directory(prefix: str) -> str:
    """Create a 0700 directory with a path short enough for a socket, and return it."""
    candidates = (os.environ.get("XDG_RUNTIME_DIR", ""), "/run", "/tmp")
    for parent in candidates:
        # 64 leaves room for the directory, a slash and a file in it.
        if not parent or len(parent) > 64 or not os.access(parent, os.W_OK | os.X_OK):
            continue
        path = f"{parent}/{prefix}{os.urandom(6).hex()}"
        with suppress(OSError, InvalidError):
            check_trusted(parent)
            make_directory(path)
            return path
    raise UnavailableError(
        "cannot create a private directory: set XDG_RUNTIME_DIR or make /run writable"
    )
