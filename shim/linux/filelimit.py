"""The limit of open files: the daemon uses all that it may, and its programs have their own.

A manager's soft limit is 1,024 on many hosts, and the hard one much higher.  A daemon of many
containers needs more.  A program that a container runs inherits the manager's limits: one that
uses select(2), or closes all possible fds, relies on a low soft limit.

Source: getrlimit(2), systemd.exec(5) LimitNOFILE.
"""

from __future__ import annotations

import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIMIT = resource.RLIMIT_NOFILE
_given = resource.RLIM_INFINITY  # the soft limit before it was raised


def raise_limit() -> None:
    """Raise the soft limit of this process to the hard one."""
    global _given
    soft, hard = resource.getrlimit(_LIMIT)
    if soft != hard:
        _given = soft
        resource.setrlimit(_LIMIT, (hard, hard))


@contextmanager
def limit_of_children() -> Iterator[None]:
    """Undo :func:`raise_limit` for programs that are executed in the block.

    posix_spawn(3) cannot set the limit in the child.  No open or accept of the daemon fails in
    the block: its main thread runs the block, and another thread opens files only in a small
    fd table of its own, or while the main thread waits for it.  An operation on a disk that does
    not respond runs on after that (:mod:`shim.offthread`): its open may fail, with EMFILE.
    """
    soft, hard = resource.getrlimit(_LIMIT)
    if _given == resource.RLIM_INFINITY or 0 <= soft <= _given:
        yield
        return
    resource.setrlimit(_LIMIT, (_given, hard))
    try:
        yield
    finally:
        resource.setrlimit(_LIMIT, (soft, hard))
