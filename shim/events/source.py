"""The source of one container's events, and the publisher that opens sources: their interface.

The containers of a daemon know only this; :mod:`shim.events.publisher` delivers the events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message


class Source(Protocol):
    """Publishes the events of one container.  Never waits and never raises."""

    def publish(self, event: Message) -> None:
        """Queue ``event`` for delivery, with the current time as its timestamp."""

    def seal(self, event: Message) -> bytes:
        """Return the serialized envelope of ``event``, with the current time, for :meth:`post`."""

    def post(self, envelope: bytes) -> bool:
        """Queue a serialized envelope for delivery; return whether :meth:`has` finds it later.

        If it does not, the journal may forget the envelope at any time.
        """

    def before_forgetting(self, call: Callable[[], None]) -> None:
        """Have ``call`` called before the journal forgets an envelope that :meth:`has` finds."""

    def has(self, envelope: bytes) -> bool:
        """Return whether the journal of an earlier daemon ends with this envelope."""

    def close(self) -> None:
        """Close the container's journal once the manager has acknowledged every event."""


class Publisher(Protocol):
    """Publishes the events of a daemon's containers.  Never waits and never raises."""

    @property
    def waiting(self) -> int:
        """The number of events that the manager has not acknowledged."""

    def open_source(self, journal: str) -> Source:
        """Return the source whose events are kept in the file ``journal``."""


class NullPublisher:
    """For a manager that passes no address because it takes no events (CRI-O)."""

    waiting = 0

    def open_source(self, journal: str) -> NullPublisher:
        """Return this object."""
        return self

    def publish(self, event: Message) -> None:
        """Drop ``event``."""

    def seal(self, event: Message) -> bytes:
        """Return nothing: no event is sent."""
        return b""

    def post(self, envelope: bytes) -> bool:
        """Drop ``envelope``."""
        return True

    def before_forgetting(self, call: Callable[[], None]) -> None:
        """Do nothing: no envelope is forgotten."""

    def has(self, envelope: bytes) -> bool:
        """Return True: no envelope needs to be sent."""
        return True

    def close(self) -> None:
        """Do nothing: there is no journal."""

    def begin(self) -> None:
        """Do nothing."""

    async def flush(self) -> None:
        """Return at once: no event is queued."""
