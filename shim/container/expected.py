"""Saves the facts about containers before their Create, for a replacement of the daemon.

The state of a container begins with its Create.  The earlier facts are in one state of the
daemon: the reservations of ``start``, the joins of tasks, and the ids of cancelled Creates.
This state is first written when one of them changes, so a daemon of one container has none
before it ends: it also says that the daemon ends.

Its times are those of the kernel's monotonic clock, which all processes share.

Source: none; this project defines the format.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import trio

from shim import log
from shim.errors import InvalidError
from shim.recovery import versions
from shim.recovery.deposit import Deposit
from shim.recovery.inherited import EXPECTED
from shim.recovery.slot import StateSlot


@dataclass(frozen=True, slots=True)
class Expected:
    """The state.

    ``reservations`` is as of :meth:`~shim.container.reservations.Reservations.state`, None for
    a new daemon.  ``joined`` has a time for each ``start`` that has joined: after it, its
    Create is expected no longer.  ``cancelled`` are ids, the oldest first.  ``ends`` is set
    from a Shutdown without a container on, until another container is created.
    """

    reservations: dict[str, Any] | None = None
    joined: list[float] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    ends: bool = False

    def encode(self) -> bytes:
        """Return the text for :meth:`parse`."""
        return json.dumps({"version": versions.EXPECTED, **asdict(self)}).encode()

    @classmethod
    def parse(cls, text: bytes) -> Expected:
        """Return the state in a text of :meth:`encode`.

        :raises InvalidError: it is malformed, or of another version.
        """
        try:
            value = json.loads(text)
            versions.require_readable("expected", value.pop("version"))
            return cls(**value)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise InvalidError(f"the state of expected containers is malformed: {exc}") from None


class SavedExpected:
    """The state in ``deposit``; ``earlier`` is that of the daemon that this one replaces.

    ``slot`` is that of the earlier daemon, owned from now on.
    """

    def __init__(self, deposit: Deposit | None = None, slot: StateSlot | None = None) -> None:
        self.earlier = Expected()
        self._deposit = deposit or Deposit()
        self._slot = slot
        if slot is not None:
            self._deposit.use_own({EXPECTED: slot.fd})
            try:
                self.earlier = Expected.parse(slot.read())
            except (InvalidError, OSError) as exc:
                log.error("a container may be created in vain: its start is lost", error=exc)

    def write(self, state: Expected) -> None:
        """Save ``state``.  Call it before an effect of the change is visible outside."""
        if not self._deposit.is_active:
            return
        try:
            if self._slot is not None:
                self._slot.write(state.encode())
                return
            self._slot = StateSlot.new()
            self._slot.write(state.encode())
        except OSError as exc:
            self._deposit.give_up(exc)
        else:
            self._deposit.lend({EXPECTED: self._slot.fd})

    def close(self) -> None:
        """Close the state; the keeper's copy stays.  A second call does nothing."""
        slot, self._slot = self._slot, None
        if slot is not None:
            self._deposit.leave(EXPECTED)
            slot.close()


def saved_time(deadline: float) -> float:
    """Convert a time of trio's clock for the state."""
    return deadline - trio.current_time() + time.monotonic()


def restored_time(saved: float) -> float:
    """Convert a time in the state to one of trio's clock."""
    return saved - time.monotonic() + trio.current_time()
