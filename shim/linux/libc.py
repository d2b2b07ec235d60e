"""The system calls the standard library does not wrap.  The only ctypes in the tree.

Each function raises OSError as ``os`` would, and returns what the call returns.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_libc = ctypes.CDLL(None, use_errno=True)

# Source: linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NAME = 15
_PR_SET_THP_DISABLE = 41
_PR_GET_THP_DISABLE = 42
_PR_SCHED_CORE = 62
_PR_SCHED_CORE_CREATE = 1
_PIDTYPE_PGID = 2

# Source: CPython Include/object.h, _Py_IMMORTAL_REFCNT and _Py_IsImmortal; PEP 683.
_IMMORTAL = 0xFFFFFFFF


def _checked(result: int, name: str | None = None) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2).  ``data`` must be shorter than a page: the kernel cuts it silently."""
    _checked(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            os.fsencode(fstype),
            ctypes.c_ulong(flags),
            os.fsencode(data) if data else None,
        ),
        target,
    )


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _checked(_libc.umount2(os.fsencode(target), flags), target)


def set_child_subreaper(*, wanted: bool = True) -> None:
    """Become the parent of every orphan among our descendants, or no longer.  prctl(2)."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0))


def set_name(name: str) -> None:
    """Set the name ``ps -o comm`` shows, cut to 15 bytes.  prctl(2)."""
    _checked(_libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0))


# Whether huge pages are kept away from this process, and by itself.
_thp_refused = False


def disable_thp() -> None:
    """Keep transparent huge pages out of this process's memory.  prctl(2).

    What it executes has none either, unless that happens within :func:`thp_of_children`.
    """
    global _thp_refused
    if not _checked(_libc.prctl(_PR_GET_THP_DISABLE, 0, 0, 0, 0)):
        _checked(_libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0))
        _thp_refused = True


@contextmanager
def thp_of_children() -> Iterator[None]:
    """Let what is executed in the block have the huge pages that :func:`disable_thp` refused.

    The refusal outlives an exec: without this, no program in a container had any.
    """
    if not _thp_refused:
        yield
        return
    _checked(_libc.prctl(_PR_SET_THP_DISABLE, 0, 0, 0, 0))
    try:
        yield
    finally:
        _checked(_libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0))


def create_core_cookie() -> None:
    """Give this process group a core scheduling cookie of its own.

    Source: Documentation/admin-guide/hw-vuln/core-scheduling.rst.
    """
    _checked(_libc.prctl(_PR_SCHED_CORE, _PR_SCHED_CORE_CREATE, 0, _PIDTYPE_PGID, 0))


def inotify_init() -> int:
    """Return a new inotify fd, non-blocking and close-on-exec.  inotify(7)."""
    return _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """Watch ``path`` for the events in ``mask``; return the watch descriptor.  inotify(7)."""
    return _checked(_libc.inotify_add_watch(fd, os.fsencode(path), mask), path)


def set_title(words: list[str]) -> None:
    """Show ``words`` as this process's command line, cut to the room the old one had.

    Source: proc(5), /proc/pid/stat fields 48 arg_start and 49 arg_end.
    """
    with open("/proc/self/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    # The fields after the name begin with the third.
    start, end = int(fields[48 - 3]), int(fields[49 - 3])
    room = end - start
    if start and room > 0:
        text = b"".join(word.encode() + b"\0" for word in words)[: room - 1]
        ctypes.memmove(start, text.ljust(room, b"\0"), room)


def has_immortals() -> bool:
    """Say whether this is a CPython whose immortal objects we know: 3.12 or 3.13, 64 bits.

    Neither a debug build nor one without the GIL, whose objects begin differently.
    """
    return (
        sys.implementation.name == "cpython"
        and sys.version_info[:2] in ((3, 12), (3, 13))
        and not sys.abiflags
        and sys.byteorder == "little"
        and sys.maxsize > 1 << 32
        and object.__basicsize__ == 16
        and ctypes.c_uint64.from_address(id(None)).value == _IMMORTAL
    )


def make_immortal(objects: Iterable[object]) -> None:
    """Make ``objects`` immortal, where :func:`has_immortals`.

    An immortal object is never freed, and its count of references never written.
    The interpreter has no call for it: this writes the count it looks for, into
    objects that are alive as long as ``objects`` has them.
    """
    assert has_immortals()
    for one in objects:
        ctypes.c_uint32.from_address(id(one)).value = _IMMORTAL
