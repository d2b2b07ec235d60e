"""Counters of this daemon, for monitoring: integers that only grow.

A process is one daemon, so there is one set.  Nothing is written or sent unless a
client calls Stats for the empty id, which no container has.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Counters:
    """Times are in nanoseconds, output is in bytes.

    An exec's time is that of its Start.  An exit's time is from the exit of the process,
    when the daemon reaps it, to the queueing of its event.
    """

    spooled: int = 0
    dropped: int = 0
    execs: int = 0
    exec_time: int = 0
    exits: int = 0
    exit_time: int = 0

    def reset(self) -> None:
        """Set every counter to 0: the fork server has run the code of several containers."""
        for name in self.values():
            setattr(self, name, 0)

    def values(self) -> dict[str, int]:
        """Return the counters by name."""
        return asdict(self)


COUNTERS = Counters()
