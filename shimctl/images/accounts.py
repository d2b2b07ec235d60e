"""Users and groups by name, from the image's own /etc/passwd and /etc/group.

The image's files are not trusted.  Their paths are resolved inside the image's
root, so that no link leads out of it.  Only regular files are read, and at most
4 MiB of each.

Source: passwd(5), group(5); runc libcontainer/user (GetExecUser) for the meaning
of a number, of a name, and of an empty user.
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

_MAX_FILE = 4 << 20  # bytes that are read of one file
_MAX_ID = (1 << 31) - 1  # the highest uid and gid, as in runc


@dataclass(frozen=True, slots=True)
class User:
    """The user, the group and the additional groups of a process."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


def find_user(rootfs: Path, text: str) -> User:
    """Return the user that ``text`` names in the image.

    ``text`` is ``USER`` or ``UID``, alone or with ``:GROUP`` or ``:GID``.

    :raises NotFoundError: the image has no such user or group.
    :raises InvalidError: ``text`` has none of these forms.
    """
    return parse_user(text, read_inside(rootfs, "etc/passwd"), read_inside(rootfs, "etc/group"))


def parse_user(text: str, passwd: str, group: str, *, owner: str = "image") -> User:
    """Return the user that ``text`` names, given the contents of the two files.

    ``owner`` is the owner of the files, for the error.

    :raises NotFoundError, InvalidError: as :func:`find_user` does.
    """
    name, colon, group_name = text.partition(":")
    if (colon and not group_name) or (text and not name):
        raise InvalidError(f"{text!r} is not a user; use USER, UID, USER:GROUP or UID:GID")
    name = name or "0"
    number = _number(name)
    entry = next(
        (
            fields
            for fields in _entries(passwd, 4)
            # The name is compared first: a user's name may be 1000.
            if fields[0] == name or (number is not None and fields[2] == str(number))
        ),
        None,
    )
    uid = _number(entry[2]) if entry else number
    if uid is None:
        raise NotFoundError(f"the {owner} has no user {name} in its /etc/passwd")
    gid = (_number(entry[3]) if entry else 0) or 0
    if group_name:
        return User(uid, _group(group_name, group, owner))
    if entry is None:
        return User(uid, gid)
    members = (
        _number(fields[2]) for fields in _entries(group, 4) if entry[0] in fields[3].split(",")
    )
    groups = sorted({member for member in members if member is not None})
    return User(uid, gid, tuple(groups))


def read_inside(rootfs: Path, name: str) -> str:
    """Return the first 4 MiB of the image's file ``name``.

    Return an empty text if it is not a regular file or cannot be opened.

    :raises InvalidError: its links form a loop.
    """
    # resolve has followed all links.  O_NOFOLLOW refuses a link that was put there since.
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


def _group(name: str, group: str, owner: str) -> int:
    number = _number(name)
    for fields in _entries(group, 3):
        if fields[0] == name:
            number = _number(fields[2])
            break
    if number is None:
        raise NotFoundError(f"the {owner} has no group {name} in its /etc/group")
    return number


def _entries(text: str, least: int) -> list[list[str]]:
    lines = (line.strip() for line in text.split("\n"))
    entries = [line.split(":") for line in lines if line and not line.startswith("#")]
    return [fields for fields in entries if len(fields) >= least]


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal()) or len(text) > 10:
        return None
    return int(text) if int(text) <= _MAX_ID else None
