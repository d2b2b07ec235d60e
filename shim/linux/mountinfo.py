"""The mount table of a process, as the kernel writes it.

A line has fields separated by one blank.  Blank, tab, newline, backslash and ``#``
within a field are octal escapes of one byte.  The kernel escapes no other byte, so only
``\\n`` ends a line, and a name need not be UTF-8.

Source: proc_pid_mountinfo(5); linux fs/proc_namespace.c show_mountinfo(), mangle().
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One line.  Invalid UTF-8 becomes surrogates, as in :func:`os.fsdecode`.

    ``root`` is the path in the file system that is mounted on ``point``; ``options``
    are the options of the file system, not of the mount.
    """

    fstype: str
    root: str
    point: str
    options: frozenset[str]


def parse(data: bytes) -> list[MountPoint]:
    """Parse a mount table, in the order of mounting; malformed lines are left out."""
    mounts = []
    for line in data.split(b"\n"):
        before, dash, after = line.partition(b" - ")
        match before.split(b" "), after.split(b" "):
            case [_, _, _, root, point, *_], [fstype, _, options, *_] if dash:
                words = frozenset(_text(word) for word in options.split(b","))
                mounts.append(MountPoint(_text(fstype), _text(root), _text(point), words))
    return mounts


def _text(field: bytes) -> str:
    if b"\\" in field:
        field = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)
    return os.fsdecode(field)


def read() -> list[MountPoint]:
    """Return the mounts in the mount namespace of this process.

    :raises OSError: /proc is not mounted.
    """
    with open("/proc/self/mountinfo", "rb") as table:
        return parse(table.read())


def mount_points() -> list[str]:
    """Return the path of every mount this process can see, in the order of mounting."""
    return [mount.point for mount in read()]


def mounts_below(path: str, points: Iterable[str] | None = None) -> list[str]:
    """Return the mounts on ``path`` and below, in the order of mounting.

    The last component of ``path`` is not followed if it is a link.
    ``points`` are the mounts to select from; None means all of this process's mounts.
    """
    head, slash, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        path = os.path.realpath(path)
    else:
        path = f"{os.path.realpath(head or slash or '.').rstrip('/')}/{name}"
    inside = path.rstrip("/") + "/"
    found = mount_points() if points is None else points
    return [point for point in found if point == path or point.startswith(inside)]
