"""A journal on a disk: a thread waits for the disk, and the daemon a fraction of a second.

An operation is done when its method returns, as with a journal in memory.  Once an
operation takes longer than ``WAIT`` seconds, the daemon no longer waits: operations
are queued, and left out while ``QUEUE_LIMIT`` are queued.  Once the disk responds
and operations were left out, the journal is rewritten.  The journals of all containers on
one disk wait once in total.
The daemon itself writes a journal in memory, as below ``/run``, without a thread.
"""

from __future__ import annotations

import errno
import os
import time
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from shim import log
from shim.events.journal import RETRY, Journal
from shim.offthread import own_fds, start_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shim.events.journal import Entry

# Seconds that the daemon waits for one operation; none while one is late.
WAIT = 0.25
# Operations that may be queued for the thread.
QUEUE_LIMIT = 256
# Seconds to read the journal when the daemon starts.
LOAD = 2.0
# Seconds to close the journal when the daemon ends.
CLOSE = 1.0
# The devices that do not respond; a thread removes its own when an operation is done.
_late_devices: set[int] = set()


class _Loading:
    """One load of ``journal``, and its result, which may come late."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.found: list[tuple[int, bytes]] = []
        self.error: OSError | None = None
        self.is_done = False

    def run(self) -> None:
        """Load the journal."""
        try:
            self.found = self._journal.load()
        except OSError as exc:
            self.error = exc
        self.is_done = True


class ThreadedJournal:
    """A :class:`Journal`; each method returns within a bound."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._device = _device_of(path)
        self._journal = Journal(path)
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._done: SimpleQueue[None] = SimpleQueue()
        self._pending = 0  # operations that are not done yet
        self._late = False  # an operation took too long and is not done yet
        self._skipped = False  # operations were left out
        self._running = False
        self._retry_at = 0.0  # no thread is started before
        self._loading: _Loading | None = None  # a load that was begun

    def load(self) -> list[tuple[int, bytes]]:
        """As :meth:`Journal.load`.

        Call no other method but :meth:`close` before it has returned or raised another
        error than TimeoutError: the events of the file could be lost.

        :raises OSError: as there.
        :raises TimeoutError: the disk did not respond within ``LOAD`` seconds.  A further
            call does not wait.
        """
        if self._loading is None:
            loading = self._loading = _Loading(self._journal)
            self._run_in_thread(loading.run, wait=LOAD)
            if self._skipped:  # it did not begin
                self._skipped, self._loading = False, None
        self._count_done()
        loaded = self._loading
        if loaded is None or not loaded.is_done:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), self._path)
        self._loading = None
        if loaded.error is not None:
            raise loaded.error
        return loaded.found

    @property
    def last_loaded(self) -> bytes:
        """As :attr:`Journal.last_loaded`."""
        return self._journal.last_loaded

    def write(self, waiting: Iterable[Entry], new: Entry) -> None:
        """Append ``new``, the last of ``waiting``."""
        kept = list(waiting)
        if not self._catch_up(kept):
            self._run_in_thread(partial(self._journal.write, kept, new))

    def mark(self, entry: Entry, *, last: bool) -> None:
        """Record that ``entry`` is acknowledged; with ``last`` no event is left."""
        self._run_in_thread(partial(self._journal.mark, entry, last=last))

    def rewrite(self, waiting: Iterable[Entry]) -> None:
        """Replace the file by one that has only ``waiting``."""
        self._run_in_thread(partial(self._journal.rewrite, list(waiting)))

    def retry(self, waiting: Iterable[Entry]) -> None:
        """Write the events that the file lacks after a failure or a disk that hung."""
        kept = list(waiting)
        if not self._catch_up(kept):
            self._run_in_thread(partial(self._journal.retry, kept))

    def is_in_place(self) -> bool:
        """As :meth:`Journal.is_in_place`; False while the disk does not respond."""
        found: list[bool] = []
        self._run_in_thread(lambda: found.append(self._journal.is_in_place()))
        return found == [True]

    def fileno(self) -> int:
        """Return -1: only the thread has the file's fd."""
        return -1

    def close(self, *, remove: bool) -> None:
        """As :meth:`Journal.close`; waits at most ``CLOSE`` seconds for the disk."""
        if not self._running:
            return  # it was never opened, or its thread, which has the fd, closes it
        self._skipped = False
        self._run_in_thread(partial(self._journal.close, remove=remove), wait=CLOSE)
        self._work.put(None)
        self._running = False

    def _catch_up(self, waiting: list[Entry]) -> bool:
        """Rewrite the journal if operations were left out and the disk responds again."""
        self._count_done()
        if not self._skipped or self._pending:
            return False
        if not self._running and not self._start():
            return True
        log.info("the journal's disk responds again", path=self._path)
        self._skipped = False
        self._run_in_thread(partial(self._journal.rewrite, waiting))
        return True

    def _count_done(self) -> None:
        """Count the operations that were done in the meantime."""
        while self._pending:
            try:
                self._done.get_nowait()
            except Empty:
                return
            self._pending -= 1
        self._late = False

    def _run_in_thread(self, operation: Callable[[], object], *, wait: float = WAIT) -> None:
        self._count_done()
        if self._skipped:
            return
        if self._pending >= QUEUE_LIMIT:
            self._skipped = True
            return
        if not self._running and not self._start():
            self._skipped = True
            return
        self._work.put(operation)
        self._pending += 1
        if self._late or self._device in _late_devices:
            return
        try:
            self._done.get(timeout=wait)
        except Empty:
            self._late = True
            _late_devices.add(self._device)
            log.warning(
                "cannot write the journal, events are in memory only: its disk does not respond",
                path=self._path,
            )
        else:
            self._pending -= 1

    def _start(self) -> bool:
        """Start the thread; return False if the host had no room within ``RETRY`` seconds."""
        if time.monotonic() < self._retry_at:
            return False
        try:
            start_thread(self._run, self._path)
        except OSError as exc:
            self._retry_at = time.monotonic() + RETRY
            log.warning(
                "cannot write the journal, events are in memory only", path=self._path, error=exc
            )
            return False
        self._running = True
        return True

    def _run(self) -> None:
        # Only this thread has the file's fd, and so the lock.
        own_fds()
        while (operation := self._work.get()) is not None:
            try:
                operation()
            except Exception as exc:
                log.crash("the journal failed", exc, path=self._path)
            # Here, not where the daemon counts it: by then the disk can hang again, and a
            # journal that was closed in the meantime counts nothing.
            _late_devices.discard(self._device)
            self._done.put(None)


def _device_of(path: str) -> int:
    """Return the number of the device of the directory of ``path``, 0 if it is unknown."""
    try:
        return os.stat(os.path.dirname(path)).st_dev  # noqa: PTH116, PTH120 - plain strings
    except OSError:
        return 0
