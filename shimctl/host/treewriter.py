"""Write the entries of a tar below a directory, while another process may change it.

Each entry is created relative to the fd of its directory, under a temporary name, and then
renamed; a link that lies at its name is replaced, never followed.  In a container the
directories on the way may be links, which are resolved inside the container's root.  On
the host they may not: an entry below a link is refused.  So neither the entries nor a
process that changes the tree meanwhile can direct a write elsewhere.

Source: openat(2); rename(2); Docker's pkg/archive, createTarFile and NoOverwriteDirNonDir,
for the entries that may replace each other.
"""

from __future__ import annotations

import os
import secrets
import stat
import tarfile
import time
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Self

from shim.errors import InvalidError, ShimError, WrongStateError
from shim.text import printable
from shimctl.host.inroot import open_inside
from shimctl.host.treewalk import CAPABILITY, PAX_CAPABILITY

if TYPE_CHECKING:
    from types import TracebackType

    from shimctl.host.ownership import Owner

_CHUNK = 1 << 20  # bytes of one read
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_SPECIAL = stat.S_ISUID | stat.S_ISGID


class Writer:
    """Creates entries below ``path`` inside the directory ``root``, an fd of the caller.

    With ``links`` the directories on the way may be links inside ``root``.  ``owner``
    changes the owners of the entries.  Without ``trusted`` no device is created, no file
    gets a capability, and no file whose owner changes keeps its set-user-id and
    set-group-id bits.  ``skipped`` lists the devices.  Use it as a context manager: at its
    end the new directories get their modes and times.
    """

    def __init__(self, root: int, path: str, owner: Owner, *, links: bool, trusted: bool) -> None:
        self.skipped: list[str] = []
        self._root = root
        self._path = path
        self._owner = owner
        self._links = links
        self._trusted = trusted
        self._last: tuple[tuple[str, ...], int] | None = None
        self._directories: dict[tuple[str, ...], tarfile.TarInfo] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            for parts, info in reversed(self._directories.items()):
                with suppress(*(() if error is None else (OSError, ShimError))):
                    self._finish_directory(parts, info)
        except OSError as exc:
            raise ShimError(f"cannot set the mode of a directory: {exc.strerror}") from None
        finally:
            self._forget()

    def add(self, info: tarfile.TarInfo, data: BinaryIO | None) -> None:
        """Create one entry; ``data`` is that of a regular file.

        :raises InvalidError: its name leads out of the directory, or passes a link.
        :raises WrongStateError: it would replace a directory by a file, or the reverse.
        :raises ShimError: it cannot be written.
        """
        parts = _parts(info.name)
        if not parts:
            return  # the directory itself
        try:
            self._add(parts, info, data)
        except OSError as exc:
            reason = exc.strerror or str(exc)
            raise ShimError(f"cannot write {printable(info.name)}: {reason}") from None

    def _add(self, parts: tuple[str, ...], info: tarfile.TarInfo, data: BinaryIO | None) -> None:
        parent, name = self._parent(parts[:-1]), parts[-1]
        old = _mode(parent, name)
        if info.isdir():
            if old is not None and not stat.S_ISDIR(old):
                raise WrongStateError(f"cannot replace {printable(info.name)} by a directory")
            if old is None:
                os.mkdir(name, 0o700, dir_fd=parent)
                self._directories[parts] = info
            return
        if old is not None and stat.S_ISDIR(old):
            raise WrongStateError(f"cannot replace the directory {printable(info.name)} by a file")
        if not self._trusted and (info.ischr() or info.isblk()):
            self.skipped.append(info.name)
            return
        if info.islnk():
            self._link(info, parent, name)
            return
        temporary = f".{secrets.token_hex(8)}.new"
        try:
            self._create(info, data, parent, temporary)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise

    def _create(
        self, info: tarfile.TarInfo, data: BinaryIO | None, parent: int, name: str
    ) -> None:
        if info.isreg():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=parent)
            try:
                if data is not None:
                    copy_data(data, fd)
                self._set(fd, info)
            finally:
                os.close(fd)
            return
        uid, gid = self._owner(info.uid, info.gid)
        if info.issym():
            os.symlink(info.linkname, name, dir_fd=parent)
        else:
            kind = {tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK}
            if info.type not in (*kind, tarfile.FIFOTYPE):
                raise InvalidError(f"{printable(info.name)} has a type that cannot be copied")
            device = os.makedev(info.devmajor, info.devminor) if info.type in kind else 0
            os.mknod(name, kind.get(info.type, stat.S_IFIFO) | 0o600, device, dir_fd=parent)
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        if not info.issym():
            # chmod(2) would follow a link that was put there meanwhile.
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                if not stat.S_ISLNK(os.fstat(fd).st_mode):
                    os.chmod(f"/proc/self/fd/{fd}", info.mode & 0o777)  # noqa: PTH101 - an fd
            finally:
                os.close(fd)
        times = (info.mtime, info.mtime)
        os.utime(name, times, dir_fd=parent, follow_symlinks=False)

    def _link(self, info: tarfile.TarInfo, parent: int, name: str) -> None:
        target = _parts(info.linkname)
        if not target:
            raise InvalidError(f"{printable(info.name)} is a link to a directory")
        # The cached fd of the parent must outlive the look-up of the target's.
        parent = os.dup(parent)
        try:
            source = self._parent(target[:-1])
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parent)
            os.link(target[-1], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)

    def _set(self, fd: int, info: tarfile.TarInfo) -> None:
        set_attributes(fd, info, self._owner, trusted=self._trusted)

    def _finish_directory(self, parts: tuple[str, ...], info: tarfile.TarInfo) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(parts[-1], flags, dir_fd=self._parent(parts[:-1]))
        try:
            self._set(fd, info)
        finally:
            os.close(fd)

    # The directories on the way

    def _parent(self, parts: tuple[str, ...]) -> int:
        """Return an fd of a directory, which stays open until the next call."""
        if self._last is not None and self._last[0] == parts:
            return self._last[1]
        fd = self._open(parts)
        self._forget()
        self._last = parts, fd
        return fd

    def _forget(self) -> None:
        if self._last is not None:
            os.close(self._last[1])
            self._last = None

    def _open(self, parts: tuple[str, ...]) -> int:
        """Open a directory; create those on the way that are missing."""
        try:
            return self._open_existing(parts)
        except FileNotFoundError:
            if not parts:
                raise
        for length in range(1, len(parts) + 1):
            try:
                os.close(self._open_existing(parts[:length]))
            except FileNotFoundError:
                above = self._open_existing(parts[: length - 1])
                try:
                    os.mkdir(parts[length - 1], 0o700, dir_fd=above)
                finally:
                    os.close(above)
                made = tarfile.TarInfo()  # of the container's root, with the time of now
                made.type, made.mode, made.mtime = tarfile.DIRTYPE, 0o755, time.time()
                self._directories[parts[:length]] = made
        return self._open_existing(parts)

    def _open_existing(self, parts: tuple[str, ...]) -> int:
        if self._links:
            path = "/".join((self._path, *parts))
            return open_inside(self._root, path, _DIRECTORY)
        fd = open_inside(self._root, self._path, _DIRECTORY)
        for part in parts:
            above = fd
            try:
                fd = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
            except NotADirectoryError:
                name = printable("/".join(parts))
                raise InvalidError(
                    f"refused to write to {name}: {printable(part)} is a link or a file"
                ) from None
            finally:
                os.close(above)
        return fd


def copy_data(data: BinaryIO, fd: int) -> None:
    """Write all of ``data`` to ``fd``."""
    while chunk := data.read(_CHUNK):
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(fd, rest) :]


def set_attributes(fd: int, info: tarfile.TarInfo, owner: Owner, *, trusted: bool) -> None:
    """Give the file or directory ``fd`` the owner, the mode and the times of ``info``."""
    uid, gid = owner(info.uid, info.gid)
    os.fchown(fd, uid, gid)
    keep = trusted or (uid, gid) == (info.uid, info.gid)
    os.fchmod(fd, info.mode if keep or info.isdir() else info.mode & ~_SPECIAL)
    capability = info.pax_headers.get(PAX_CAPABILITY)
    if capability is not None and trusted:
        with suppress(OSError):  # a file system without it, or no privilege
            os.setxattr(fd, CAPABILITY, capability.encode(errors="surrogateescape"))
    os.utime(fd, (info.mtime, info.mtime))


def _parts(name: str) -> tuple[str, ...]:
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise InvalidError(f"refused the entry {printable(name)}: it leads out of the directory")
    return parts


def _mode(directory: int, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None
