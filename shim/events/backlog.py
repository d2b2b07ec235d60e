"""The events of one container that the manager has not acknowledged.

They are queued in memory and in the journal of the container's bundle, without a limit
in time.  Past a limit in number or in size the oldest events are dropped, some at a time
and exits last, and a warning is logged.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from shim import log
from shim.api.envelope_pb2 import Envelope
from shim.api.events_pb2 import TaskExit
from shim.events import journal
from shim.events.journal import Entry, Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shim.events.threadedjournal import ThreadedJournal

# Events that are kept at most: about 5 MiB.
LIMIT = 20_000
# One part in so many of a limit is dropped at once, because each drop rewrites the
# whole journal.
_PART = 16
_EXIT = TaskExit.DESCRIPTOR.full_name


class _Numbers:
    """Numbers for the events of all backlogs, in their order: the times in ns.

    The clock may be set back.  So a new event has a larger number than all before, and a
    loaded one than those before it in its journal.
    """

    def __init__(self) -> None:
        self._largest = 0

    def of_new(self, envelope: Envelope) -> int:
        return self._note(max(_time_of(envelope), self._largest + 1))

    def of_loaded(self, envelope: Envelope, previous: int) -> int:
        return self._note(max(_time_of(envelope), previous + 1))

    def _note(self, number: int) -> int:
        self._largest = max(self._largest, number)
        return number


def _time_of(envelope: Envelope) -> int:
    return envelope.timestamp.seconds * 10**9 + envelope.timestamp.nanos


_numbers = _Numbers()


def _open_threaded(path: str) -> ThreadedJournal:
    from shim.events.threadedjournal import ThreadedJournal  # loaded only for a bundle on a disk

    return ThreadedJournal(path)


class Backlog:
    """A queue of serialized envelopes, also written to ``path`` if that is not empty.

    With ``threaded``, for a path on a disk that may hang, a thread writes the file.

    Call :meth:`load` or :meth:`adopt` before the first event.
    """

    def __init__(self, path: str = "", *, threaded: bool = False) -> None:
        self.path = path
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._journal = _open_threaded(path) if threaded else Journal(path)
        # Another process owns the journal and delivers its events, or its disk does not
        # respond: nothing is written to it, because its events are not in the queue yet.
        self._busy = False

    def __len__(self) -> int:
        return len(self._entries)

    def load(self) -> bool:
        """Own the journal and queue its events; return False if another process owns it.

        :raises TimeoutError: its disk does not respond.  A later call queues the events.
        :raises OSError: the journal cannot be read.
        """
        self._busy = False
        if not self.path:
            return True
        try:
            self._add_loaded(self._journal.load())
        except FileNotFoundError:
            pass
        except BlockingIOError:
            self._busy = True
            return False
        except TimeoutError:
            self._busy = True
            raise
        return True

    def adopt(self, fd: int) -> None:
        """Own the open journal ``fd``, and queue its events; the file may have been removed.

        :raises OSError: it cannot be read.
        """
        assert isinstance(self._journal, Journal)
        self._add_loaded(self._journal.adopt(fd))

    def _add_loaded(self, found: Iterable[tuple[int, bytes]]) -> None:
        number = 0
        for offset, payload in found:
            try:
                envelope = Envelope.FromString(payload)
            except DecodeError as exc:
                log.warning(
                    "cannot deliver a record of the journal: it is no event",
                    path=self.path,
                    error=exc,
                )
                continue
            number = _numbers.of_loaded(envelope, number)
            self._add(Entry(payload, envelope.event.type_url == _EXIT, offset, number))

    @property
    def last_loaded(self) -> bytes:
        """The last event in the file at :meth:`load`, delivered or not; empty without one."""
        return self._journal.last_loaded

    @property
    def has_last(self) -> bool:
        """Whether the journal ends with the newest event, delivered or not.

        False for a journal that a thread writes.
        """
        return (
            isinstance(self._journal, Journal)
            and bool(self._entries)
            and self._entries[-1].offset >= 0
        )

    def before_forgetting(self, call: Callable[[], None]) -> None:
        """Have ``call`` called before the journal loses a delivered event, for which it asks
        :attr:`last_loaded`.
        """
        if isinstance(self._journal, Journal):
            self._journal.before_forgetting = call

    def append(self, envelope: Envelope) -> None:
        """Add an event at the end of the queue."""
        self._reload()
        is_exit = envelope.event.type_url == _EXIT
        entry = Entry(envelope.SerializeToString(), is_exit, number=_numbers.of_new(envelope))
        self._add(entry)
        is_full = len(self._entries) > LIMIT or self._bytes > journal.SIZE
        if is_full:
            self._drop_oldest()
        if self._busy:
            return
        if is_full:
            self._journal.rewrite(self._entries)
        else:
            self._journal.write(self._entries, entry)

    def _reload(self) -> None:
        """Own the journal and queue its events, if that is possible by now."""
        if not self._busy:
            return
        ours, self._entries, self._bytes = self._entries, deque(), 0
        if ours:
            self._add(ours.popleft())  # its delivery may be under way
        try:
            self.load()
        except TimeoutError:
            pass
        except OSError as exc:
            log.warning("the journal cannot be read", path=self.path, error=exc)
        for entry in ours:
            self._add(entry)
        if not self._busy:
            self._journal.rewrite(self._entries)

    def _add(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._bytes += entry.size

    @property
    def first(self) -> Envelope:
        """The oldest event, which is queued until :meth:`acknowledge`."""
        return Envelope.FromString(self._entries[0].payload)

    @property
    def first_payload(self) -> bytes:
        """The oldest event, serialized."""
        return self._entries[0].payload

    @property
    def first_number(self) -> int:
        """The number of the oldest event: of two backlogs the lower one has the older event."""
        return self._entries[0].number

    def is_of(self, path: str) -> bool:
        """Return whether this backlog writes to the file that is at ``path`` now."""
        return path == self.path and self._journal.is_in_place()

    def acknowledge(self) -> None:
        """Remove the first event: the manager has received it."""
        entry = self._entries.popleft()
        self._bytes -= entry.size
        if not self._busy:
            self._journal.mark(entry, last=not self._entries)

    def retain(self, wanted: Callable[[Envelope], bool]) -> None:
        """Remove every event that is not ``wanted``; call it before any is delivered."""
        for _ in range(len(self._entries)):
            entry = self._entries[0]
            if wanted(Envelope.FromString(entry.payload)):
                self._entries.rotate(-1)
            else:
                self.acknowledge()

    def envelopes(self) -> list[Envelope]:
        """Return all events, the oldest first."""
        return [Envelope.FromString(entry.payload) for entry in self._entries]

    def retry(self) -> None:
        """Write the events that the journal lacks after a failure."""
        self._reload()
        self._journal.retry(self._entries)

    def fileno(self) -> int:
        """Return the fd of the journal, or -1 without one."""
        return self._journal.fileno()

    def close(self) -> None:
        """Close the journal, and remove its file if no event is left."""
        self._journal.close(remove=not self._entries and not self._busy)

    def _drop_oldest(self) -> None:
        entries = list(self._entries)
        count, size = len(entries), self._bytes
        most = LIMIT - LIMIT // _PART if count > LIMIT else LIMIT
        biggest = journal.SIZE - journal.SIZE // _PART if size > journal.SIZE else journal.SIZE
        dropped: set[int] = set()
        for exits in (False, True):
            # Not the first event: its delivery may be under way.
            for index in range(1, len(entries)):
                if count <= most and size <= biggest:
                    break
                if entries[index].is_exit is exits:
                    dropped.add(index)
                    count -= 1
                    size -= entries[index].size
        self._entries = deque(one for i, one in enumerate(entries) if i not in dropped)
        self._bytes = size
        log.warning("events dropped: the queue for the manager is full", dropped=len(dropped))
