"""Make directories, files and fifos with a given mode, whatever the umask is.

mkdir(2), open(2) and mkfifo(2) take the umask off the mode.  A manager with umask
0 would so get what every user may write to, and one with umask 077 what its other
programs cannot read.  The mode is therefore set again after the creation; until
then it is never wider than asked for.

A path's parents are checked from the root on, before anything is created there: a
directory that another user owns or may write to is refused, since that user could
rename what is below it and put something else in its place.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from shim.errors import InvalidError
from shim.text import doing

# What containerd gives its state directories: others may pass, and see nothing.
_PASS = 0o711
# As many links as the kernel follows in one path, see path_resolution(7).
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

    :raises FileExistsError: there is something at ``path``, and no directory with ``exist_ok``.
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
    """Create a directory and the parents that are missing.  What exists keeps its mode.

    :raises OSError: a directory cannot be created.
    """
    whole = os.fspath(path).rstrip("/") or "/"
    if os.path.isdir(whole):  # noqa: PTH112
        return
    if above := os.path.dirname(whole):  # noqa: PTH120
        try:
            make_directories(above, parents, parents=parents)
        except (FileExistsError, NotADirectoryError):  # as mkdir(2) says it of a parent
            text = os.strerror(errno.ENOTDIR)
            raise NotADirectoryError(errno.ENOTDIR, text, whole) from None
    make_directory(whole, mode, exist_ok=True)


def _set(path: str | os.PathLike[str], mode: int) -> None:
    if stat.S_IMODE(os.lstat(path).st_mode) != mode:
        with suppress(PermissionError):  # a file system without modes
            os.chmod(path, mode)  # noqa: PTH101


def make_trusted(path: str, mode: int = 0o700) -> None:
    """Create a directory that no other user can replace, and the parents that are missing.

    :raises InvalidError: another user owns it or one of its parents, or may write there.
    :raises OSError: a directory cannot be created.
    """
    _walk(path, mode)


def check_trusted(path: str) -> None:
    """Check that no other user can replace the directory at ``path``.

    :raises InvalidError: another user owns it or one of its parents, or may write there.
    :raises OSError: it cannot be looked at, or does not exist.
    """
    _walk(path, None)


def _walk(path: str, mode: int | None) -> None:
    """Check each directory on the way to ``path``; create what is missing if there is a mode."""
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
            # Another starter may be doing the same.
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
    """Refuse a directory or a link that another user could replace, or fill.

    Root's and our own are trusted.  Others may write where the sticky bit keeps them
    from what is not theirs (/tmp), and a group may where it is the owner's alone, by
    the convention that a user's private group has the user's number.
    """
    if found.st_uid not in (0, os.geteuid()) and not _is_outside(found.st_uid):
        raise InvalidError(
            f"{path} belongs to user {found.st_uid}, who could replace what is created there: "
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
    """Say whether ``uid`` stands for the users that our user namespace does not have.

    The host's root is one of them, whose / and /run a rootless manager uses.
    """
    try:
        with open("/proc/self/uid_map") as file:
            if file.read().split() == ["0", "0", "4294967295"]:
                return False
        with open("/proc/sys/kernel/overflowuid") as file:
            return uid == int(file.read())
    except (OSError, ValueError):
        return False
