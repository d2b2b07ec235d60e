"""The events that wait for the manager, in their order, in memory and in the journal.

There is no limit in time.  There is one in number and one in size, past which the
oldest events that are no exits go first, some at a time, and the log says so.
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
    from collections.abc import Callable

    from shim.events.threadedjournal import ThreadedJournal

# Events kept while nobody takes them: some 5 MiB.
LIMIT = 20_000
# Of what is over a limit, this part of the limit goes at once: making room writes
# the whole journal anew.
_PART = 16
_EXIT = TaskExit.DESCRIPTOR.full_name


def _open_threaded(path: str) -> ThreadedJournal:
    from shim.events.threadedjournal import ThreadedJournal  # not for a bundle in memory

    return ThreadedJournal(path)


class Backlog:
    """A queue of serialized envelopes, kept at ``path`` if that is not empty.

    ``aside`` is for a path on a disk that may hang: another thread writes there.

    Call :meth:`load` before the first event.
    """

    def __init__(self, path: str = "", *, threaded: bool = False) -> None:
        self._path = path
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._journal = _open_threaded(path) if threaded else Journal(path)
        self._busy = False  # somebody else has the journal, and what is in it

    def __len__(self) -> int:
        return len(self._entries)

    def load(self) -> bool:
        """Take over what an earlier daemon left; say whether nobody else has it.

        :raises OSError: the journal cannot be read.
        """
        self._busy = False
        if not self._path:
            return True
        try:
            found = self._journal.load()
        except FileNotFoundError:
            return True
        except BlockingIOError:
            self._busy = True
            return False
        for offset, payload in found:
            try:
                is_exit = Envelope.FromString(payload).event.type_url == _EXIT
            except DecodeError as exc:
                log.warning("the journal has something that is no event", error=exc)
                continue
            self._add(Entry(payload, is_exit, offset))
        return True

    def append(self, envelope: Envelope) -> None:
        """Add an event behind all others."""
        self._reload()
        entry = Entry(envelope.SerializeToString(), envelope.event.type_url == _EXIT)
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
        """Have the journal, and what is left in it, if whoever had it has gone."""
        if not self._busy:
            return
        ours, self._entries, self._bytes = self._entries, deque(), 0
        if ours:
            self._add(ours.popleft())  # it may be on its way at this moment
        try:
            self.load()
        except OSError as exc:
            log.warning("the journal cannot be read", path=self._path, error=exc)
        for entry in ours:
            self._add(entry)
        if not self._busy:
            self._journal.rewrite(self._entries)

    def _add(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._bytes += entry.size

    @property
    def first(self) -> Envelope:
        """The oldest event, which stays until :meth:`acknowledge`."""
        return Envelope.FromString(self._entries[0].payload)

    def acknowledge(self) -> None:
        """Let go of the first event: the manager has it."""
        entry = self._entries.popleft()
        self._bytes -= entry.size
        self._journal.mark(entry, last=not self._entries)

    def retain(self, wanted: Callable[[Envelope], bool]) -> None:
        """Let go of every event but those ``wanted``, before any is delivered."""
        for _ in range(len(self._entries)):
            entry = self._entries[0]
            if wanted(Envelope.FromString(entry.payload)):
                self._entries.rotate(-1)
            else:
                self.acknowledge()

    def envelopes(self) -> list[Envelope]:
        """Return all of them, the oldest first."""
        return [Envelope.FromString(entry.payload) for entry in self._entries]

    def retry(self) -> None:
        """Bring the journal up to date, where a failure kept it from that."""
        self._reload()
        self._journal.retry(self._entries)

    def fileno(self) -> int:
        """Return the fd of the journal, which :meth:`load` found."""
        return self._journal.fileno()

    def close(self) -> None:
        """Let go of the journal, which stays only if events do."""
        self._journal.close(remove=not self._entries)

    def _drop_oldest(self) -> None:
        entries = list(self._entries)
        count, size = len(entries), self._bytes
        most = LIMIT - LIMIT // _PART if count > LIMIT else LIMIT
        biggest = journal.SIZE - journal.SIZE // _PART if size > journal.SIZE else journal.SIZE
        dropped: set[int] = set()
        for exits in (False, True):
            # Not the first one, which may be on its way at this moment.
            for index in range(1, len(entries)):
                if count <= most and size <= biggest:
                    break
                if entries[index].is_exit is exits:
                    dropped.add(index)
                    count -= 1
                    size -= entries[index].size
        self._entries = deque(one for i, one in enumerate(entries) if i not in dropped)
        self._bytes = size
        log.warning("events dropped: the queue is full", dropped=len(dropped))
