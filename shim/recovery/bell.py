"""The eventfd by which a daemon wakes the keeper of its fds to read its messages.

Messages wait in the channel until then (:mod:`shim.recovery.messages`).

Source: eventfd(2).
"""

from __future__ import annotations

import os
from contextlib import suppress

from shim import log

# Messages after which the keeper is woken to read them.
_UNREAD = 64


class Bell:
    """The bell of one channel; it is open from :meth:`open` to :meth:`close`."""

    def __init__(self) -> None:
        self._fd = -1
        self._unread = 0  # messages since the bell was last rung

    def open(self) -> int:
        """Open a new bell, for the keeper; return its fd, or -1 if no fd is left."""
        self.close()
        try:
            self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as exc:
            log.debug("the fork server is woken for each message", error=exc)
        return self._fd

    def count(self) -> None:
        """Count a message; wake the keeper when many wait."""
        self._unread += 1
        if self._unread >= _UNREAD:
            self.ring()

    def reset(self) -> None:
        """Count the messages from now on."""
        self._unread = 0

    def ring(self) -> None:
        """Wake the keeper: it reads all messages that were sent."""
        self._unread = 0
        if self._fd >= 0:
            with suppress(BlockingIOError):  # rung very often, and not heard yet
                os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """Close the bell.  A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
