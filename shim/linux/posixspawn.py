"""Starts a program by posix_spawn(3): with any fds, working directory and default signals.

``os.posix_spawn`` can set no working directory, and leaves signals 32 and 33 ignored.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
from typing import TYPE_CHECKING

from shim.linux.filelimit import limit_of_children
from shim.linux.libc import SIGSET, encoded, library

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# Source: spawn.h of glibc and of musl, which agree.  The sizes leave room for both.
_POSIX_SPAWN_SETSIGDEF = 0x04
_POSIX_SPAWN_SETSIGMASK = 0x08
_ATTRIBUTES = 1024
_FILE_ACTIONS = 256


def _spawn_attributes() -> ctypes.Array[ctypes.c_char]:
    """Return attributes that give a child default signals and an empty signal mask.

    The set of signals is written as bytes: sigaddset(3) rejects 32 and 33, which the C
    library reserves.  Without them in the set, a child would inherit them ignored.
    """
    attributes = ctypes.create_string_buffer(_ATTRIBUTES)
    library.posix_spawnattr_init(attributes)
    wanted = _POSIX_SPAWN_SETSIGDEF | _POSIX_SPAWN_SETSIGMASK
    library.posix_spawnattr_setflags(attributes, ctypes.c_short(wanted))
    defaults = (1 << 64) - 1 & ~(1 << signal.SIGKILL - 1) & ~(1 << signal.SIGSTOP - 1)
    defaulted = defaults.to_bytes(8, sys.byteorder).ljust(SIGSET, b"\0")
    library.posix_spawnattr_setsigdefault(attributes, defaulted)
    library.posix_spawnattr_setsigmask(attributes, bytes(SIGSET))
    return attributes


_child_attributes = _spawn_attributes()


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    dups: Iterable[tuple[int, int]],
    directory: str | None = None,
) -> int:
    """Start a program with every signal at its default; return its pid.

    ``argv[0]`` is looked up on our PATH.  ``dups`` are pairs of our fd and the
    child's fd, duplicated in this order.  ``directory`` is the child's working
    directory; None keeps ours.  The child's limit of open files is the manager's.
    posix_spawn(3).
    """
    words = [encoded(word) for word in argv]
    where = encoded(directory or "")
    actions = ctypes.create_string_buffer(_FILE_ACTIONS)
    library.posix_spawn_file_actions_init(actions)
    pid = ctypes.c_int()
    try:
        for source, number in dups:
            _returned(library.posix_spawn_file_actions_adddup2(actions, source, number))
        if where:
            _returned(library.posix_spawn_file_actions_addchdir_np(actions, where))
        arguments = (ctypes.c_char_p * (len(words) + 1))(*words)
        environment = _environment(tuple(env.items()))
        # Not earlier: with the lower limit the C library refuses a fd above it.
        with limit_of_children():
            error = library.posix_spawnp(
                ctypes.byref(pid), words[0], actions, _child_attributes, arguments, environment
            )
        _returned(error, argv[0])
    finally:
        library.posix_spawn_file_actions_destroy(actions)
    return pid.value


@functools.lru_cache(maxsize=1)
def _environment(pairs: tuple[tuple[str, str], ...]) -> ctypes.Array[ctypes.c_char_p]:
    """Return the environment as C strings; most programs are started with the same one."""
    texts = [encoded(f"{name}={value}") for name, value in pairs]
    return (ctypes.c_char_p * (len(texts) + 1))(*texts)


def _returned(error: int, name: str | None = None) -> None:
    """Raise the error that a function of the posix_spawn family returned."""
    if error:
        raise OSError(error, os.strerror(error), name)
