"""Id-mapped mounts: a mount shows other owners than its file system stores.

The kernel takes the mapping from a user namespace.  It needs Linux 5.12, and 5.19
where the mount is a layer of an overlay.  ext4, xfs, btrfs, erofs, tmpfs (6.3) and
some other file systems support it.

Source: containerd core/mount/mount_idmapped_linux.go; mount_setattr(2), open_tree(2),
move_mount(2), user_namespaces(7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shim.errors import InvalidError, UnsupportedError
from shim.linux import libc

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXTENT = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})", re.ASCII)
# Ids are 32 bits, and the last one means "no id".
_IDS = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class IdMap:
    """Extents of ids, as lines of /proc/PID/uid_map and gid_map: inside, outside, count."""

    users: str
    groups: str


def parse_idmap(users: str, groups: str) -> IdMap:
    """Parse two comma-separated lists of ``CONTAINER:HOST:SIZE``.

    :raises InvalidError: a list is malformed, or an id does not fit into 32 bits.
    """
    return IdMap(_lines(users, "uidmap"), _lines(groups, "gidmap"))


def _lines(text: str, name: str) -> str:
    lines = []
    for extent in text.split(","):
        match = _EXTENT.fullmatch(extent)
        inside, outside, size = map(int, match.groups()) if match else (0, 0, 0)
        if not size or max(inside, outside) + size > _IDS:
            raise InvalidError(
                f"mount option {name}={text!r}: a mapping is CONTAINER-ID:HOST-ID:SIZE, "
                f"of ids below {_IDS}"
            )
        lines.append(f"{inside} {outside} {size}\n")
    return "".join(lines)


def open_namespace(pid: int, idmap: IdMap) -> int:
    """Set the mapping of the new user namespace of ``pid``; return an fd of the namespace.

    ``pid`` may be a zombie.  The fd keeps the namespace alive without a process in it.

    :raises InvalidError: the kernel rejects the mapping: extents overlap, or there are
        too many.
    :raises OSError: this process may not map these ids.
    """
    for name, lines in (("uid_map", idmap.users), ("gid_map", idmap.groups)):
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, lines.encode())
        except OSError as exc:
            shown = ",".join(lines.split("\n")[:-1])
            if exc.errno == errno.EINVAL:
                raise InvalidError(f"cannot write the {name} {shown}: {exc}") from None
            raise OSError(exc.errno, f"{exc.strerror}: cannot map ids", shown) from None
        finally:
            os.close(fd)
    return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def mapped_clone(
    path: str, namespace: int, *, recursive: bool = False, read_only: bool = False
) -> Iterator[int]:
    """Clone the mount at ``path``, map it by the user namespace, and yield the clone's fd.

    The clone is detached; :func:`shim.linux.libc.move_mount` attaches it to a directory.
    The end of the block closes the fd, which removes a clone that was not attached.

    :raises UnsupportedError: the kernel or the file system has no id-mapped mounts.
    """
    tree = -1
    try:
        tree = libc.open_tree(path, recursive=recursive)
        libc.map_ids(tree, namespace, recursive=recursive, read_only=read_only)
    except OSError as exc:
        if tree >= 0:
            os.close(tree)
        if exc.errno == errno.ENOSYS:
            raise UnsupportedError(
                f"{path} cannot be mounted with mapped ids: the kernel has no mount_setattr(2); "
                "use Linux 5.12 or newer, or a snapshotter that changes owners itself"
            ) from None
        if exc.errno == errno.EINVAL and tree >= 0:
            raise UnsupportedError(
                f"{path} cannot be mounted with mapped ids: its file system has no id-mapped "
                "mounts; use another one, or a snapshotter that changes owners itself"
            ) from None
        raise OSError(exc.errno, f"{exc.strerror}: cannot map the owners of", path) from None
    try:
        yield tree
    finally:
        os.close(tree)
