"""Users and groups by name, as the image itself has them.

The image's files are not to be trusted: they are found without leaving its
root, whatever links it holds, and read only if they are plain and not endless.

Source: passwd(5), group(5); runc libcontainer/user (GetExecUser) for what a
number, a name, and the lack of either mean.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shim.errors import InvalidError, NotFoundError
from shim.linux.mounts import resolve

if TYPE_CHECKING:
    from pathlib import Path

_MAX_FILE = 4 << 20  # bytes of such a file
_MAX_ID = (1 << 31) - 1  # as runc has it


@dataclass(frozen=True, slots=True)
class User:
    """Whom a process runs as."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


def find_user(rootfs: Path, text: str) -> User:
    """Return whom ``USER``, ``UID``, or either with ``:GROUP`` or ``:GID``, means in the image.

    :raises NotFoundError: the image knows no such name.
    :raises InvalidError: it is none of these.
    """
    return parse_user(text, read_inside(rootfs, "etc/passwd"), read_inside(rootfs, "etc/group"))


def parse_user(text: str, passwd: str, group: str) -> User:
    """Do it, given the two files."""
    name, colon, group_name = text.partition(":")
    if (colon and not group_name) or (text and not name):
        raise InvalidError(f"{text!r} is no user; say USER, UID, USER:GROUP or UID:GID")
    name = name or "0"
    number = _number(name)
    entry = next(
        (
            fields
            for fields in _entries(passwd, 4)
            # As a name first: somebody may be called 1000.
            if fields[0] == name or (number is not None and fields[2] == str(number))
        ),
        None,
    )
    uid = _number(entry[2]) if entry else number
    if uid is None:
        raise NotFoundError(f"the image has no user {name} in its /etc/passwd")
    gid = (_number(entry[3]) if entry else 0) or 0
    if group_name:
        return User(uid, _group(group_name, group))
    if entry is None:
        return User(uid, gid)
    members = (
        _number(fields[2]) for fields in _entries(group, 4) if entry[0] in fields[3].split(",")
    )
    groups = sorted({member for member in members if member is not None})
    return User(uid, gid, tuple(groups))


def read_inside(rootfs: Path, name: str) -> str:
    """Return what the file ``name`` of the image holds; nothing if it is no plain file.

    :raises InvalidError: its links go in circles.
    """
    # The last link is followed by resolve; one that comes in its place is not ours.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(resolve(str(rootfs), name), flags)
    except OSError:
        return ""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return ""
    with open(fd, "rb") as file:
        return file.read(_MAX_FILE).decode(errors="replace")


def _group(name: str, group: str) -> int:
    number = _number(name)
    for fields in _entries(group, 3):
        if fields[0] == name:
            number = _number(fields[2])
            break
    if number is None:
        raise NotFoundError(f"the image has no group {name} in its /etc/group")
    return number


def _entries(text: str, least: int) -> list[list[str]]:
    lines = (line.strip() for line in text.split("\n"))
    entries = [line.split(":") for line in lines if line and not line.startswith("#")]
    return [fields for fields in entries if len(fields) >= least]


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal()) or len(text) > 10:
        return None
    return int(text) if int(text) <= _MAX_ID else None
