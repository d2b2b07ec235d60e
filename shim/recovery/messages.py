"""The messages between a daemon and the keeper of its fds: words, separated by NUL.

The daemon sends:

- ``bell`` with an eventfd: from now on the keeper reads the channel only when the daemon writes
  to the eventfd or ends.  Messages wait in the channel until then, with their fds;
- ``put NAME...`` with one fd for each name; a fd replaces an earlier one of the same name;
- ``drop NAME...``: the keeper closes these fds;
- ``read``: the keeper reads the channels of all daemons, because the kernel limits the fds that
  wait in all of them together;
- ``exit NAME``: the keeper answers ``exit NAME STATUS TIME`` with the exit of the process
  of the pidfd NAME, or ``exit NAME`` if it does not know the exit;
- ``claimed``, from a replacement that has sent the pidfds of all inherited processes.  Until
  then the keeper reaps no orphan without a pidfd;
- ``serving``, from a replacement that is about to accept calls;
- ``end``, before it ends on purpose: no replacement follows.  A keeper that ends on purpose
  sends it, too: then no daemon starts another fork server.

A daemon moves to another keeper (:mod:`shim.recovery.moving`) in three steps.  It sends
``give`` with a socket to its keeper, which sends all fds of the daemon there, and then
``replace``.  One of these is a channel of its own, on which the keeper reports exits from
then on (:mod:`shim.recovery.reports`): ``exit NAME TOKEN`` is answered as above, with the
token after the name, and ``drop NAME...`` closes pidfds.  The other keeper forks a
replacement, which sends ``ready VERSIONS`` on that socket when it can begin, with the
versions of the states that it writes.  The daemon answers ``go``, or ``alone`` if its own
version cannot read these, and ends.
"""

from __future__ import annotations

BELL, PUT, DROP, EXIT, READ = b"bell", b"put", b"drop", b"exit", b"read"
CLAIMED, SERVING, END = b"claimed", b"serving", b"end"
GIVE, REPLACE, READY = b"give", b"replace", b"ready"
GO, ALONE = b"go", b"alone"
# A request to a fork server, see :mod:`shim.recovery.requests`.
REGISTER = b"register"
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
