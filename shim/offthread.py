"""Run a short operation in a thread, and wait for it with a time limit.

A hung disk can block the operation without end.  The thread ends with the operation.  It
does not share fds, working directory and umask with the daemon.  So if the daemon is
killed while a disk blocks the thread, the daemon's other fds are closed.  The daemon's
pid exists until the thread ends; therefore operations that may block for long, such as
writes to a log file, run in a separate process (``shim.stdio.filehelper``).

In the thread, ``/proc/self`` is still the daemon; the thread's fds are in
``/proc/thread-self``.
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
from shim.linux.fds import close_all_but

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

# All signals, as plain numbers: valid_signals() takes 0.09 ms.
_SIGNALS = frozenset(map(int, signal.valid_signals()))
# The objects of operations that were given up and have not ended, one entry for each.
_unfinished: list[str] = []
# Seconds between two looks at this list.  It is empty unless a disk is slow.
_PAUSE = 0.01


class _Work(Generic[T]):
    """One operation and its result.  ``changes`` names the object that it changes."""

    def __init__(
        self,
        work: Callable[[], T],
        late: Callable[[], object],
        done: int,
        keep: Sequence[int],
        changes: str,
    ) -> None:
        self._work = work
        self._late = late
        self._done = done
        self._keep = keep
        self._changes = changes
        self._lock = _thread.allocate_lock()
        self._finished = False
        self.given_up = False
        self._result: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Run the operation in the thread, and notify the caller."""
        try:
            self._run()
        finally:
            if self.given_up:
                _unfinished.remove(self._changes)

    def _run(self) -> None:
        try:
            own_fds(self._done, *self._keep)
            if self.given_up:
                return  # the caller may have closed the fds to keep
            self._result.append(self._work())
        except BaseException as exc:
            self._error = exc
        with self._lock:
            self._finished = True
            if not self.given_up:
                os.eventfd_write(self._done, 1)
                return
        try:
            self._late()
        except Exception as exc:
            log.warning("cannot undo an operation that finished too late", error=exc)

    def give_up(self) -> bool:
        """Stop waiting for the operation; return whether it had not finished."""
        with self._lock:
            if not self._finished:
                _unfinished.append(self._changes)
                self.given_up = True
        return self.given_up

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result[0]


def own_fds(*keep: int) -> None:
    """Give the calling thread a separate fd table with ``keep``, 0 to 2 and the log's fd.

    The thread receives no signals any more: a signal handler would write to the event
    loop's wakeup fd, which the thread does not have, and the loop would not wake up.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        libc.unshare_files()
    except OSError as exc:  # a seccomp filter forbids it: the thread shares the daemon's fds
        log.debug("cannot unshare the fds of a thread", error=exc)
        return
    close_all_but(*keep, log.fileno())


def start_thread(run: Callable[[], None], what: str) -> None:
    """Start a thread that calls ``run``.  ``what`` names its work in the error.

    :raises OSError: EAGAIN, the host has no room for a thread.
    """
    try:
        _thread.start_new_thread(run, ())
    except RuntimeError:
        text = "cannot start a thread: a limit of the host is reached"
        raise OSError(errno.EAGAIN, text, what) from None


class Worker:
    """A thread that runs one operation after the other, until :meth:`close`.

    The caller waits for each operation with a time limit, and starts no other while one
    is late.  The thread shares the daemon's fds, since the daemon passes pipes to it.

    :raises OSError: EAGAIN, the host has no room for a thread.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._done: SimpleQueue[None] = SimpleQueue()
        self._late = False
        start_thread(self._run, "move output")

    @property
    def stuck(self) -> bool:
        """Whether an operation is late and has not finished."""
        if self._late:
            with suppress(Empty):
                self._done.get_nowait()
                self._late = False
        return self._late

    def do(self, operation: Callable[[], T], wait: float, late: Callable[[T], object]) -> T:
        """Return the result of ``operation``.

        If it finishes after ``wait`` seconds, the thread passes the result to ``late``.

        :raises OSError: ETIMEDOUT, it did not finish within ``wait`` seconds, or an
            earlier operation is still late.
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
        """End the thread after its current operation."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception as exc:
                log.crash("cannot undo an operation that finished too late", exc)


async def run_off_thread(
    work: Callable[[], T],
    what: str,
    *,
    limit: float,
    late: Callable[[], object] = lambda: None,
    keep: Sequence[int] = (),
    changes: str = "",
) -> T:
    """Run ``work`` in a thread that has the fds ``keep``, and return its result.

    ``what`` names the action and its object in the error.  The thread runs ``late`` if
    ``work`` finishes after the limit, or after the caller was cancelled.  ``changes`` is
    the object for :func:`wait_unchanged`.

    :raises TimedOutError: it did not finish within ``limit`` seconds.
    """
    done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    piece = _Work(work, late, done, keep, changes)
    try:
        start_thread(piece.run, what)
    except OSError:
        os.close(done)
        raise
    try:
        with trio.move_on_after(limit):
            await trio.lowlevel.wait_readable(done)
    finally:
        gave_up = piece.give_up()
        os.close(done)
    if gave_up:
        raise TimedOutError(
            f"{what}: not finished within {limit:g} s; check the disk or its file server"
        )
    return piece.result()


async def wait_unchanged(name: str, limit: float) -> None:
    """Wait until no operation that was given up can still change the object ``name``.

    :raises TimedOutError: one has not ended within ``limit`` seconds.
    """
    with trio.move_on_after(limit):
        while name in _unfinished:  # noqa: ASYNC110 - a thread without an event loop ends it
            await trio.sleep(_PAUSE)
        return
    raise TimedOutError(
        f"cannot use {name}: an earlier operation on it has not ended within {limit:g} s; "
        "check the disk or its file server"
    )
