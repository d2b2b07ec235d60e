"""Parse the mount options of containerd into the arguments of mount(2).

Source: containerd core/mount/mount_linux.go parseMountOptions, mount(2), mount(8).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shim.errors import InvalidError, UnsupportedError
from shim.linux.idmap import IdMap, parse_idmap

if TYPE_CHECKING:
    from collections.abc import Iterable

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


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one mount.

    ``propagation`` needs a separate mount(2) call.  ``data`` is for the file system.
    ``loop``: the source is an image file; ``direct_io``: its loop device bypasses the
    page cache.  ``idmap``: the owners of files are mapped.
    """

    flags: int = 0
    propagation: int = 0
    data: list[str] = field(default_factory=list)
    loop: bool = False
    direct_io: bool = False
    idmap: IdMap | None = None


def parse_options(options: Iterable[str]) -> Options:
    """Sort options into flags, text for the file system, and settings of this module.

    :raises InvalidError: a mapping of ids is malformed, or only one of ``uidmap`` and
        ``gidmap`` is given (the stock shim then mounts without any mapping).
    :raises UnsupportedError: an option is for containerd's mount manager.
    """
    flags, propagation, loop = 0, 0, False
    data: list[str] = []
    maps = {"uidmap": "", "gidmap": ""}
    for option in options:
        key, _, value = option.partition("=")
        if option in _FLAGS:
            added, cleared = _FLAGS[option]
            flags = (flags | added) & ~cleared
        elif option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        elif option == "loop":
            loop = True
        elif key in maps:
            maps[key] = value
        elif key.startswith("X-containerd."):
            raise UnsupportedError(
                f'internal mount option "{option}" was not consumed by the mount manager; '
                "activate the mount before creating the container"
            )
        elif option:
            data.append(option)
    direct_io = loop and "direct-io" in data
    if direct_io:
        data.remove("direct-io")
    return Options(flags, propagation, data, loop, direct_io, _idmap_of(**maps))


def _idmap_of(uidmap: str, gidmap: str) -> IdMap | None:
    if not uidmap and not gidmap:
        return None
    if not uidmap or not gidmap:
        raise InvalidError("the mount options uidmap and gidmap need each other; pass both")
    return parse_idmap(uidmap, gidmap)
