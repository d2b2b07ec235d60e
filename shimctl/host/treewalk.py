"""Read a tree of files as the entries of a tar, while another process may change it.

Each name is opened relative to its directory's fd, and no link is followed.  So a
process that replaces a directory by a link during the walk gets the link copied; the walk
never leaves the tree.  Only a regular file is opened for reading: the open of a device
or a fifo could have effects.

Source: openat(2), O_PATH and O_NOFOLLOW; proc(5), /proc/PID/fd, to open the file of an fd
again; POSIX.1-2008 pax for the entries.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

# One entry of a tar, and its data if it is a regular file.
Entry = tuple[tarfile.TarInfo, BinaryIO | None]

CAPABILITY = "security.capability"  # the only extended attribute that Docker copies
PAX_CAPABILITY = f"SCHILY.xattr.{CAPABILITY}"
# The kernel's files, which show no size, are read up to this number of bytes.
_MOST_UNSIZED = 16 << 20

_KINDS = {
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


def walk(top: int, name: str, pseudo: Collection[int] = ()) -> Iterator[Entry]:
    """Yield the entry of the file ``top``, and those below it if it is a directory.

    ``top`` is an fd, which the caller closes.  ``name`` is the name of the first entry; it
    may be empty.  A mounted file system whose device is in ``pseudo`` is shown as an empty
    directory.  Sockets are left out.  The data of an entry can be read until the next one
    is requested; it is as long as the size in the entry.

    :raises OSError: a file cannot be read.
    """
    links: dict[tuple[int, int], str] = {}
    levels: list[tuple[int, str, list[str]]] = []  # open directory, its name, names in it
    try:
        fd, device = os.dup(top), os.fstat(top).st_dev
        while True:
            try:
                status = os.fstat(fd)
                yield from _entry(fd, status, name, links)
                crossed = status.st_dev != device and status.st_dev in pseudo
                if stat.S_ISDIR(status.st_mode) and not crossed:
                    below = _reopen(fd, os.O_RDONLY | os.O_DIRECTORY)
                    levels.append((below, name, sorted(os.listdir(below), reverse=True)))  # noqa: PTH208 - of an fd
            finally:
                os.close(fd)
            found = _next(levels)
            if found is None:
                return
            fd, name, device = found
    finally:
        for below, _, _ in levels:
            os.close(below)


def _next(levels: list[tuple[int, str, list[str]]]) -> tuple[int, str, int] | None:
    """Open the next file; return its fd, its name and the device of its directory."""
    while levels:
        directory, parent, names = levels[-1]
        if not names:
            os.close(levels.pop()[0])
            continue
        child = names.pop()
        try:
            fd = os.open(child, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            continue  # removed meanwhile
        return fd, f"{parent}/{child}" if parent else child, os.fstat(directory).st_dev
    return None


def _entry(
    fd: int, status: os.stat_result, name: str, links: dict[tuple[int, int], str]
) -> Iterator[Entry]:
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = stat.S_IMODE(status.st_mode)
    info.uid, info.gid, info.mtime = status.st_uid, status.st_gid, status.st_mtime
    if kind == tarfile.SYMTYPE:
        info.linkname = os.readlink("", dir_fd=fd)
    elif kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    if kind != tarfile.REGTYPE:
        yield info, None
        return
    if status.st_nlink > 1:
        first = links.setdefault((status.st_dev, status.st_ino), name)
        if first != name:
            info.type, info.linkname = tarfile.LNKTYPE, first
            yield info, None
            return
    if capability := _capability(fd):
        info.pax_headers = {PAX_CAPABILITY: capability.decode(errors="surrogateescape")}
    with open(_reopen(fd, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        info.size = status.st_size
        data: BinaryIO = cast("BinaryIO", _Sized(file, info.size))
        if not status.st_size and not status.st_blocks:
            content = file.read(_MOST_UNSIZED) or b""
            info.size, data = len(content), io.BytesIO(content)
        yield info, data


def _reopen(fd: int, flags: int) -> int:
    """Open the file of an O_PATH fd; it cannot be another file."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


def _capability(fd: int) -> bytes:
    try:
        return os.getxattr(f"/proc/self/fd/{fd}", CAPABILITY)
    except OSError as exc:
        if exc.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.ENOENT):
            return b""
        raise


class _Sized:
    """A file with a fixed size: bytes that are cut off meanwhile become zeros, as in GNU tar."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        count = self._left if size < 0 else min(size, self._left)
        data = self._file.read(count) if count else b""
        if count and not data:
            data = bytes(min(count, 1 << 16))
        self._left -= len(data)
        return data
