"""Runs a short piece of work that a disk may hold for ever, and waits for it within a bound.

The work is done by a thread that ends with it.  The thread has a table of fds, a
working directory and a umask of its own, so nothing of the daemon stays open when
the daemon is killed while a disk holds the thread.  Its pid stays until then: what
may be held for long, as a log file may, is done by a process instead
(``shim.stdio.filehelper``).

In the thread ``/proc/self`` is still the daemon; its own fds are in ``/proc/thread-self``.
"""

from __future__ import annotations

import _thread
import errno
import os
import signal
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from shim import log
from shim.errors import TimedOutError
from shim.linux import libc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


class _Work(Generic[T]):
    """One piece of work, and what became of it."""

    def __init__(
        self, work: Callable[[], T], late: Callable[[], object], done: int, keep: Sequence[int]
    ) -> None:
        self._work = work
        self._late = late
        self._done = done
        self._keep = keep
        self._lock = _thread.allocate_lock()
        self._settled = False
        self.given_up = False
        self._result: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """In the thread: do the work and say so."""
        try:
            own_fds(self._done, *self._keep)
            if self.given_up:
                return  # its caller may have closed what it was to keep
            self._result.append(self._work())
        except BaseException as exc:
            self._error = exc
        with self._lock:
            self._settled = True
            if not self.given_up:
                os.eventfd_write(self._done, 1)
                return
        try:
            self._late()
        except Exception as exc:
            log.warning("work that came too late could not be undone", error=exc)

    def give_up(self) -> bool:
        """Leave the work to itself; say whether it was not done before."""
        with self._lock:
            self.given_up = not self._settled
        return self.given_up

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result[0]


def own_fds(*keep: int) -> None:
    """Give the calling thread a table of fds of its own: ``keep``, 0 to 2 and the log's.

    The thread receives no signals any more: the handler would write to the event
    loop's wakeup fd, which the thread does not have, and the loop would sleep on.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        libc.unshare_files()
    except OSError as exc:  # a filter of system calls forbids it: the table is the daemon's
        log.debug("a thread shares the daemon's files", error=exc)
        return
    first = 3
    for fd in sorted({fd for fd in (*keep, log.fileno()) if fd >= first}):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


class Worker:
    """A thread that does one operation after the other, until :meth:`close`.

    Its caller waits for each one within a bound, and gives no other while one is late.
    Fds are shared with the daemon, which passes pipes to it.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._done: SimpleQueue[None] = SimpleQueue()
        self._late = False
        _thread.start_new_thread(self._run, ())

    @property
    def stuck(self) -> bool:
        """Whether an operation is late and not done yet."""
        if self._late:
            with suppress(Empty):
                self._done.get_nowait()
                self._late = False
        return self._late

    def do(self, operation: Callable[[], T], wait: float, late: Callable[[T], object]) -> T:
        """Return what ``operation`` returns.

        ``late`` is given the result in the thread if that comes after ``wait`` seconds.

        :raises OSError: ETIMEDOUT, it was not done within ``wait`` seconds, or an
            earlier one is late still.
        """
        if self.stuck:
            raise OSError(errno.ETIMEDOUT, "the disk does not respond")
        results: list[T] = []
        errors: list[BaseException] = []
        lock = _thread.allocate_lock()
        given_up = False

        def work() -> None:
            try:
                results.append(operation())
            except BaseException as exc:
                errors.append(exc)
            with lock:
                if given_up and results:
                    late(results[0])
                self._done.put(None)

        self._work.put(work)
        with suppress(Empty):
            self._done.get(timeout=wait)
            if errors:
                raise errors[0]
            return results[0]
        with lock:
            given_up = self._late = not (results or errors)
        if given_up:
            raise OSError(errno.ETIMEDOUT, "the disk does not respond")
        self._done.get()
        if errors:
            raise errors[0]
        return results[0]

    def close(self) -> None:
        """End the thread, when what it does is done."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception as exc:
                log.crash("work that came too late failed", exc)


async def run_off_thread(
    work: Callable[[], T],
    what: str,
    *,
    limit: float,
    late: Callable[[], object] = lambda: None,
    keep: Sequence[int] = (),
) -> T:
    """Return what ``work`` returns; it runs in a thread that holds the fds ``keep``.

    ``what`` names the action and its object in the error.  ``late`` is run in the
    thread when ``work`` ends after its caller was cancelled or has given up.

    :raises TimedOutError: it was not done within ``limit`` seconds.
    """
    done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    piece = _Work(work, late, done, keep)
    try:
        _thread.start_new_thread(piece.run, ())
    except RuntimeError:
        os.close(done)
        raise OSError(11, "the host has no room for a thread", what) from None
    try:
        with trio.move_on_after(limit):
            await trio.lowlevel.wait_readable(done)
    finally:
        gave_up = piece.give_up()
        os.close(done)
    if gave_up:
        raise TimedOutError(
            f"{what}: not done within {limit:g} s; check the disk or the server behind it"
        )
    return piece.result()
