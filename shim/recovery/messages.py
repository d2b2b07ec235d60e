"""The messages between a daemon and the keeper of its fds: words, separated by NUL.

A daemon sends ``put NAME...`` with one fd for each name, which replaces an earlier fd of
the name; ``drop NAME...``; and ``exit NAME``, for the process of the pidfd NAME.  The keeper
answers the last one by ``exit NAME STATUS TIME``, or ``exit NAME`` while it has no exit
status of that process.  A replacement sends ``claimed`` when it has left the pidfds of all
processes of its predecessor that it goes on with: until then the keeper reaps none of
which it has no pidfd.  ``serving`` follows when it serves.

A daemon moves to another keeper (:mod:`shim.recovery.moving`) in three steps.  It sends
``give`` with a socket to its keeper, which puts all fds of the daemon there and ends with
``replace``.  The other keeper forks a replacement, which sends ``ready`` on that socket when
it can begin.  The daemon answers ``go``, and ends.
"""

from __future__ import annotations

PUT, DROP, EXIT, CLAIMED, SERVING = b"put", b"drop", b"exit", b"claimed", b"serving"
GIVE, REPLACE, READY, GO = b"give", b"replace", b"ready", b"go"
# Fds of one message; the kernel's limit is 253.
MAX_FDS = 64
# Bytes of one message.
MAX_MESSAGE = 1 << 15
# Bytes of the words of one message that a daemon sends, at most.
_FULL = MAX_MESSAGE // 2


def encode(verb: bytes, *words: str) -> bytes:
    """Return a message."""
    return b"\0".join([verb, *(word.encode() for word in words)])


def decode(data: bytes) -> tuple[bytes, list[str]]:
    """Return the verb and the words of a message.

    :raises ValueError: a word is not UTF-8.
    """
    verb, *words = data.split(b"\0")
    return verb, [word.decode() for word in words]


def split(names: list[str]) -> list[list[str]]:
    """Return ``names`` in parts that each fit into one message."""
    parts: list[list[str]] = []
    size = _FULL
    for name in names:
        size += len(name) + 1
        if size > _FULL or len(parts[-1]) == MAX_FDS:
            parts.append([])
            size = len(name) + 1
        parts[-1].append(name)
    return parts
