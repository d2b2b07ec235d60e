"""Makes child processes: it starts programs, and forks helpers of this process.

Only the reaper calls this module, because each child has to be watched and reaped.

Source: posix_spawn(3), fork(2).
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from shim import log
from shim.errors import NotFoundError
from shim.linux.fds import close_all_but
from shim.linux.libc import set_name, set_title, thp_of_children
from shim.linux.posixspawn import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def spawn_program(
    argv: Sequence[str],
    env: Mapping[str, str],
    fds: Mapping[int, int],
    directory: str | None,
) -> int:
    """Start a program as :meth:`Reaper.spawn` describes; return its pid."""
    dups: list[tuple[int, int]] = []
    wanted = {0: -1, 1: -1, 2: -1} | dict(fds)
    # A dup2 onto a number that is the source of a later entry would give the child
    # the wrong file, so each source is duplicated above the highest number.  This
    # also avoids a dup2 of a number onto itself, which would stay close-on-exec.
    floor = max(wanted) + 1
    moved: list[int] = []
    null = -1
    try:
        for number, source in sorted(wanted.items()):
            if source < 0:
                if null < 0:
                    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                    moved.append(null)
                source = null
            if source < floor:
                source = _dup_above(source, floor)
                moved.append(source)
            dups.append((source, number))
        return _spawn(argv, env, dups, directory)
    except FileNotFoundError:
        if "/" in argv[0]:
            text = f"fork/exec {argv[0]}: no such file or directory"
        else:
            text = f'exec: "{argv[0]}": executable file not found in $PATH'
        raise NotFoundError(f"{text}; install it or correct its name") from None
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, f"fork/exec {argv[0]}") from None
    finally:
        for fd in moved:
            os.close(fd)


def fork_helper(title: Sequence[str], work: Callable[[], object], keep: Sequence[int]) -> int:
    """Fork a child that runs ``work``, as :meth:`Reaper.fork` describes; return its pid."""
    sys.stderr.flush()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise
    if pid == 0:
        _work_in_child(title, work, keep)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def _spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    dups: Sequence[tuple[int, int]],
    directory: str | None,
) -> int:
    with thp_of_children():
        try:
            return spawn(argv, env, dups, directory)
        except (FileNotFoundError, NotADirectoryError):
            # The directory or the program is missing.
            if directory is None or os.path.isdir(directory):  # noqa: PTH112 - a plain string
                raise
            return spawn(argv, env, dups, "/")


def _work_in_child(
    title: Sequence[str], work: Callable[[], object], keep: Sequence[int]
) -> NoReturn:
    """Run ``work`` in the child of :meth:`Reaper.fork`, and exit."""
    status = 1
    try:
        gc.disable()  # a collection would copy every page that is shared with the parent
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        close_all_but(*keep)
        set_name(title[0])
        set_title(list(title))
        work()
        status = 0
    except BaseException as exc:
        log.crash("helper process failed", exc, title=" ".join(title))
    finally:
        os._exit(status)


def _dup_above(fd: int, floor: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor)
