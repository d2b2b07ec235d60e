"""Converts the owners of copied files between a container's user namespace and the file system.

In a user namespace a container sees other numbers than the file system stores.  Archives, and
copies with ``--archive``, use the container's numbers.

Source: user_namespaces(7), "uid_map"; OCI runtime specification, config-linux.md, "User
namespace mappings"; Docker's documentation of ``docker cp`` for the owners of copies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Changes the uid and gid of a file to those of its copy.
Owner = Callable[[int, int], tuple[int, int]]

_NOBODY = 65534  # the kernel's overflow uid and gid
_Extent = tuple[int, int, int]  # the first id inside, the first outside, their number
_ALL: tuple[_Extent, ...] = ((0, 0, (1 << 32) - 1),)


@dataclass(frozen=True, slots=True)
class Ids:
    """The uids and gids of a user namespace; the default is that of the host."""

    users: tuple[_Extent, ...] = _ALL
    groups: tuple[_Extent, ...] = _ALL

    def stored(self, uid: int, gid: int) -> tuple[int, int]:
        """Return the ids that the file system stores for the container's ids."""
        return _outside(self.users, uid), _outside(self.groups, gid)

    def shown(self, uid: int, gid: int) -> tuple[int, int]:
        """Return the container's ids for those that the file system stores."""
        return _inside(self.users, uid), _inside(self.groups, gid)

    def root(self, uid: int, gid: int) -> tuple[int, int]:
        """Return the ids that the file system stores for the container's root."""
        del uid, gid
        return self.stored(0, 0)


def caller(uid: int, gid: int) -> tuple[int, int]:
    """Return the ids of this process, whatever the ids of the file are."""
    del uid, gid
    return os.geteuid(), os.getegid()


def ids_of_process(pid: int) -> Ids:
    """Return the ids of the user namespace of process ``pid``.

    :raises OSError: the process has ended.
    """
    users, groups = (Path(f"/proc/{pid}/{name}").read_text() for name in ("uid_map", "gid_map"))
    return Ids(_parsed(users), _parsed(groups))


def ids_of_config(config: Mapping[str, Any]) -> Ids:
    """Return the ids of the user namespace in a config.json; those of the host for none."""
    linux = config.get("linux")
    found = linux if isinstance(linux, dict) else {}
    return Ids(_listed(found.get("uidMappings")), _listed(found.get("gidMappings")))


def _parsed(text: str) -> tuple[_Extent, ...]:
    lines = (line.split() for line in text.split("\n") if line.strip())
    return tuple((int(inside), int(outside), int(count)) for inside, outside, count in lines)


def _listed(mappings: object) -> tuple[_Extent, ...]:
    if not isinstance(mappings, list) or not mappings:
        return _ALL
    try:
        return tuple((one["containerID"], one["hostID"], one["size"]) for one in mappings)
    except (LookupError, TypeError):
        return _ALL


def _outside(extents: tuple[_Extent, ...], number: int) -> int:
    for inside, outside, count in extents:
        if inside <= number < inside + count:
            return outside + number - inside
    return _NOBODY


def _inside(extents: tuple[_Extent, ...], number: int) -> int:
    for inside, outside, count in extents:
        if outside <= number < outside + count:
            return inside + number - outside
    return _NOBODY
