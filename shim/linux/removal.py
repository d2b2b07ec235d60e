"""Remove a directory tree, but nothing on a file system that is mounted in it.

An opened directory is a mount point if its fd has another mount id than its parent.  The
device number is not enough: a bind mount may have the same one.

Source: proc_pid_fdinfo(5), mnt_id; openat(2); coreutils' rm, which also goes up by ``..``.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shim.errors import WrongStateError
from shim.linux.mountinfo import mounts_below

if TYPE_CHECKING:
    from pathlib import Path

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WALKS = 100  # through a tree in which another process creates files


@dataclass(slots=True)
class _Level:
    """A directory on the path from the top to the current directory."""

    name: str
    identity: tuple[int, int]  # device and inode
    directories: list[str]  # subdirectories that are still to be entered


def remove_tree(path: str | Path) -> None:
    """Remove the directory ``path`` and its content; do nothing if it does not exist.

    A file that cannot be removed, for example for lack of permission, stays without an
    error.  A file that another process creates meanwhile is removed, too, unless that goes
    on for 100 walks through the tree.

    :raises WrongStateError: something is mounted on ``path`` or below.  Nothing is
        removed then; if the mount is not in the mount table, nothing on the mount is.
    """
    text = os.fspath(path)
    check_unmounted(text)
    head, _, name = text.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise WrongStateError(f"cannot remove {text!r}: it does not end with a name")
    if not head:
        head = "/" if text.startswith("/") else "."
    for _ in range(_WALKS):
        try:
            parent = os.open(head, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        walk = _Removal(parent, head)
        if left := walk.run(name):
            raise WrongStateError(_refusal(left))
        if not walk.is_refilled:
            return


def check_unmounted(path: str | Path) -> None:
    """:raises WrongStateError: something is mounted on ``path`` or below."""
    if mounted := mounts_below(os.fspath(path)):
        raise WrongStateError(_refusal(mounted[0]))


def _refusal(mount: str) -> str:
    return f"{mount} is still mounted; umount it, then try again"


class _Removal:
    """One walk.  It holds one fd, however deep the tree is.

    ``is_refilled``: a directory stays only because another process has created a file in it.
    """

    def __init__(self, parent: int, path: str) -> None:
        self._here = parent
        self._path = path
        self._mount = mount_of(parent)
        self._start = _identity(parent)
        self._levels: list[_Level] = []
        self._left = ""
        self._refused = False  # an entry cannot be removed
        self.is_refilled = False

    def run(self, name: str) -> str:
        """Remove the directory ``name``; return a mount point in it that was kept, or ""."""
        try:
            self._enter(name)
            while self._levels:
                if directories := self._levels[-1].directories:
                    self._enter(directories.pop())
                elif not self._leave():
                    break
        finally:
            os.close(self._here)
        return self._left

    def _enter(self, name: str) -> None:
        """Open a directory and remove the files in it, unless it is on another mount."""
        try:
            fd = os.open(name, os.O_RDONLY | _DIRECTORY, dir_fd=self._here)
        except OSError as exc:
            self._note(exc)
            return
        if mount_of(fd) != self._mount:
            os.close(fd)
            self._stays(name)
            return
        os.close(self._here)
        self._here = fd
        self._levels.append(_Level(name, _identity(fd), []))
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        self._levels[-1].directories.append(entry.name)
                    else:
                        self._unlink(entry.name)
        except OSError as exc:
            self._note(exc)

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._here)
        except OSError as exc:
            self._note(exc)
            if exc.errno == errno.EBUSY:
                self._stays(name)

    def _note(self, failure: OSError) -> None:
        if failure.errno == errno.ENOTEMPTY and not self._refused:
            self.is_refilled = True
        elif failure.errno != errno.ENOENT:
            self._refused = True
            self.is_refilled = False

    def _leave(self) -> bool:
        """Go up and remove the directory; return whether its parent is still the same."""
        level = self._levels.pop()
        try:
            fd = os.open("..", os.O_PATH | _DIRECTORY, dir_fd=self._here)
        except OSError:
            return False
        os.close(self._here)
        self._here = fd
        above = self._levels[-1].identity if self._levels else self._start
        if _identity(fd) != above or mount_of(fd) != self._mount:
            return False  # it was moved meanwhile
        try:
            os.rmdir(level.name, dir_fd=fd)
        except OSError as exc:
            self._note(exc)
        return True

    def _stays(self, name: str) -> None:
        names = [self._path.rstrip("/"), *(level.name for level in self._levels), name]
        self._left = self._left or "/".join(names)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def mount_of(fd: int) -> int:
    """Return the id of the mount that the file of ``fd`` was opened on.

    :raises OSError: /proc is not mounted.
    """
    with open(f"/proc/thread-self/fdinfo/{fd}", "rb", buffering=0) as file:
        for line in file.read().split(b"\n"):
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    raise OSError(errno.ENOSYS, "no mnt_id", f"/proc/thread-self/fdinfo/{fd}")
