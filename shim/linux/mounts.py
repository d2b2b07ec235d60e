"""Mounts as containerd describes them: options are text, one rootfs is several.

Not here: loop devices, id-mapped mounts and fuse helpers, which are refused.

Source: containerd core/mount/mount_linux.go (options, two-step bind),
mount(2), Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shim.errors import InvalidError, UnsupportedError
from shim.linux import libc
from shim.linux.mountinfo import mounts_below
from shim.linux.sockets import make_private_directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# Source: linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 1 << 1
MS_NODEV = 1 << 2
MS_NOEXEC = 1 << 3
MS_SYNCHRONOUS = 1 << 4
MS_REMOUNT = 1 << 5
MS_MANDLOCK = 1 << 6
MS_DIRSYNC = 1 << 7
MS_NOSYMFOLLOW = 1 << 8
MS_NOATIME = 1 << 10
MS_NODIRATIME = 1 << 11
MS_BIND = 1 << 12
MS_REC = 1 << 14
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
_DETACH_NOFOLLOW = 2 | 8  # MNT_DETACH | UMOUNT_NOFOLLOW

# option: (flags to set, flags to clear)
_FLAGS = {
    "async": (0, MS_SYNCHRONOUS),
    "atime": (0, MS_NOATIME),
    "bind": (MS_BIND, 0),
    "defaults": (0, 0),
    "dev": (0, MS_NODEV),
    "diratime": (0, MS_NODIRATIME),
    "dirsync": (MS_DIRSYNC, 0),
    "exec": (0, MS_NOEXEC),
    "mand": (MS_MANDLOCK, 0),
    "noatime": (MS_NOATIME, 0),
    "nodev": (MS_NODEV, 0),
    "nodiratime": (MS_NODIRATIME, 0),
    "noexec": (MS_NOEXEC, 0),
    "nomand": (0, MS_MANDLOCK),
    "norelatime": (0, MS_RELATIME),
    "nostrictatime": (0, MS_STRICTATIME),
    "nosuid": (MS_NOSUID, 0),
    "nosymfollow": (MS_NOSYMFOLLOW, 0),
    "rbind": (MS_BIND | MS_REC, 0),
    "relatime": (MS_RELATIME, 0),
    "remount": (MS_REMOUNT, 0),
    "ro": (MS_RDONLY, 0),
    "rw": (0, MS_RDONLY),
    "strictatime": (MS_STRICTATIME, 0),
    "suid": (0, MS_NOSUID),
    "sync": (MS_SYNCHRONOUS, 0),
}
_PROPAGATION = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}
# What belongs to a mount rather than to its filesystem: the kernel ignores
# these in the call that makes a bind mount and takes them in a remount.
_PER_MOUNT = (
    MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME | MS_NOSYMFOLLOW
)
# statvfs(3) flag: the mount(2) flag that must be repeated where it is locked.
_LOCKED = {1: MS_RDONLY, 2: MS_NOSUID, 4: MS_NODEV, 8: MS_NOEXEC, 1024: MS_NOATIME,
           2048: MS_NODIRATIME, 4096: MS_RELATIME}  # fmt: skip

# Bytes of options one mount(2) takes: a page and its final zero.
_MOST_DATA = os.sysconf("SC_PAGESIZE") - 1
# Source: linux/namei.h MAXSYMLINKS.
_MOST_LINKS = 40
_UNESCAPED_COLON = re.compile(r"(?<!\\):")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of a rootfs.  ``target`` is inside the rootfs; empty is the rootfs itself."""

    type: str
    source: str
    target: str = ""
    options: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Options:
    """fstab options as mount(2) wants them; ``propagation`` needs a call of its own."""

    flags: int = 0
    propagation: int = 0
    data: list[str] = field(default_factory=list)


def parse_options(options: Iterable[str]) -> Options:
    """Sort options into flags and text for the filesystem.

    :raises UnsupportedError: an option asks for work we do not do.
    """
    flags, propagation, data = 0, 0, []
    for option in options:
        key = option.partition("=")[0]
        if option in _FLAGS:
            added, cleared = _FLAGS[option]
            flags = (flags | added) & ~cleared
        elif option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        elif key == "loop":
            raise UnsupportedError("mount option loop: attach the loop device beforehand")
        elif key in {"uidmap", "gidmap"}:
            raise UnsupportedError(f"mount option {key}: id-mapped mounts are not supported")
        elif key.startswith("X-containerd."):
            raise UnsupportedError(f"mount option {option}: it is for containerd's mount manager")
        elif option:
            data.append(option)
    return Options(flags, propagation, data)


def mount_all(mounts: Sequence[Mount], rootfs: str) -> None:
    """Make ``mounts`` in order, all or none.

    :raises OSError: the kernel refused one; the text names it.
    """
    done: list[str] = []
    try:
        for mount in mounts:
            target = resolve(rootfs, mount.target)
            if _mount(mount, target):
                done.append(target)
    except BaseException:
        for target in reversed(done):
            _detach(target)
        raise


def _mount(mount: Mount, target: str) -> bool:
    """Make one mount; say whether there is one more now, which a remount does not cause."""
    if mount.type.startswith(("fuse.", "fuse3.")):
        raise UnsupportedError(f"mount type {mount.type}: mount it before creating the container")
    options = parse_options(mount.options)
    remount = bool(options.flags & MS_REMOUNT)
    made = False
    try:
        _first_call(mount, target, options)
        made = not remount
        if options.propagation:
            libc.mount("", target, "", options.propagation)
        if options.flags & MS_BIND and options.flags & _PER_MOUNT and not remount:
            _remount(target, options.flags | MS_REMOUNT)
    except OSError as exc:
        if made:
            _detach(target)
        what = f"{exc.strerror}: cannot mount {mount.type or 'bind'} {mount.source}"
        raise OSError(exc.errno, what, target) from None
    return made


def _first_call(mount: Mount, target: str, options: Options) -> None:
    data = ",".join(options.data)
    if len(os.fsencode(data)) <= _MOST_DATA:
        libc.mount(mount.source, target, mount.type, options.flags, data)
        return
    with _short_layers(options.data) as short:
        if len(os.fsencode(short)) > _MOST_DATA:
            raise InvalidError(
                f"the options of {mount.type} on {target} are longer than {_MOST_DATA} bytes"
            )
        libc.mount(mount.source, str(Path(target).absolute()), mount.type, options.flags, short)


@contextlib.contextmanager
def _short_layers(data: Sequence[str]) -> Iterator[str]:
    """Stand in a directory of short links to overlay's layers; return the short options.

    The working directory belongs to the whole process, so nothing in the block may wait.
    """
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    links: list[str] = []
    directory = Path(make_private_directory("layers-"))
    try:
        short = []
        for option in data:
            key, _, value = option.partition("=")
            if key != "lowerdir":
                short.append(option)
                continue
            names = []
            # An empty layer is half of a "::", which sets data-only layers apart.
            for layer in _UNESCAPED_COLON.split(value):
                if not layer:
                    names.append("")
                    continue
                name = str(len(links))
                layer_path = Path(re.sub(r"\\(.)", r"\1", layer)).absolute()
                (directory / name).symlink_to(layer_path)
                links.append(name)
                names.append(name)
            short.append("lowerdir=" + ":".join(names))
        os.chdir(directory)
        yield ",".join(short)
    finally:
        os.fchdir(here)
        os.close(here)
        for name in links:
            (directory / name).unlink()
        directory.rmdir()


def _remount(target: str, flags: int) -> None:
    try:
        libc.mount("", target, "", flags)
    except PermissionError:
        # In a user namespace the flags a mount came with must stay.
        now = os.statvfs(target).f_flag
        kept = sum(flag for bit, flag in _LOCKED.items() if now & bit and not flags & flag)
        libc.mount("", target, "", flags | kept)


def resolve(root: str, path: str) -> str:
    """Return where ``path`` leads for a process whose root is ``root``.

    :raises InvalidError: its symbolic links go in circles.
    """
    root = os.path.realpath(root)
    current, links = root, 0
    parts = path.split("/")[::-1]
    while parts:
        part = parts.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            current = posixpath.dirname(current) if current != root else root
            continue
        step = posixpath.join(current, part)
        try:
            link = str(Path(step).readlink())
        except OSError:
            current = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise InvalidError(f"{path}: too many symbolic links")
        if link.startswith("/"):
            current = root
        parts += link.split("/")[::-1]
    return current


def unmount_all(rootfs: str) -> None:
    """Unmount whatever is mounted on ``rootfs`` and below.  Nothing is no error.

    :raises OSError: the kernel refused.
    """
    failure: OSError | None = None
    # More than one round only if somebody mounts while we unmount.
    for _ in range(3):
        points = mounts_below(rootfs)
        if not points:
            return
        points.sort(key=lambda point: point.count("/"))
        failure = None
        for point in reversed(points):
            try:
                _detach(point)
            except OSError as exc:
                failure = exc
    if failure is not None:
        raise failure


def _detach(target: str) -> None:
    try:
        libc.umount2(target, _DETACH_NOFOLLOW)
    except OSError as exc:
        # It is no mount point (any more), or its directory is gone.
        if exc.errno not in {errno.EINVAL, errno.ENOENT}:
            raise
