"""Open a path inside the root directory of a container that may change meanwhile.

The container is not trusted: it may replace any name by a link at any moment.  So each
component is opened relative to the directory before it, without following links; a
link's text is then resolved by the same rules, with the container's root as ``/``.
``..`` goes to the directory that was walked through, never above the root.  Links with
a meaning of their own, such as /proc/PID/root, are followed by their text only.

Source: openat(2), O_NOFOLLOW and O_PATH; path_resolution(7).
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_LINKS = 40  # Source: linux/namei.h MAXSYMLINKS


@contextmanager
def root_of(pid: int) -> Iterator[int]:
    """Give an fd of the root directory of process ``pid``, as the process sees it.

    :raises OSError: the process has exited, or we may not inspect it.
    """
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield root
    finally:
        os.close(root)


def open_inside(root: int, path: str, flags: int) -> int:
    """Open ``path`` inside the directory ``root``; return its fd, which is not inherited.

    :raises OSError: as :func:`os.open`; ELOOP also if a link was put in the way meanwhile.
    """
    walked: list[int] = []  # the directories from the root down, without the root
    parts = path.split("/")[::-1]
    links = 0
    try:
        while parts:
            part = parts.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if walked:
                    os.close(walked.pop())
                continue
            parent = walked[-1] if walked else root
            step = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            mode = os.fstat(step).st_mode
            if stat.S_ISLNK(mode):
                try:
                    target = os.readlink("", dir_fd=step)
                finally:
                    os.close(step)
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if target.startswith("/"):
                    while walked:
                        os.close(walked.pop())
                parts += target.split("/")[::-1]
            elif stat.S_ISDIR(mode):
                walked.append(step)
            else:
                os.close(step)
                if any(rest not in ("", ".") for rest in parts):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
                return os.open(part, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        return os.open(".", flags | os.O_CLOEXEC, dir_fd=walked[-1] if walked else root)
    finally:
        for fd in walked:
            os.close(fd)


def read_regular(root: int, path: str, limit: int) -> bytes:
    """Return the first ``limit`` bytes of the regular file ``path`` inside ``root``.

    :raises OSError: it cannot be opened, or is no regular file (EINVAL).
    """
    fd = open_inside(root, path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is not a regular file", path)
    with open(fd, "rb") as file:
        return file.read(limit)
