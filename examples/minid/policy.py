"""When a container runs again: pure decisions on what was written down about it.

A :class:`Record` is all that minid knows of a container beyond its bundle.  It
is on disk before what it announces is done, so that whoever is killed between
the two, and comes back, only has to look and go on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

NO, ON_FAILURE, ALWAYS, UNLESS_STOPPED = KINDS = ("no", "on-failure", "always", "unless-stopped")


@dataclass(frozen=True, slots=True)
class Restart:
    """Whether an end is followed by a new beginning; ``most`` is how often in a row."""

    kind: str = NO
    most: int | None = None

    def wants(self, code: int | None, restarts: int) -> bool:
        """Decide after ``restarts`` in a row; ``code`` is None if it could not be started."""
        if self.kind == NO or (self.kind == ON_FAILURE and code == 0):
            return False
        return self.most is None or restarts < self.most


@dataclass(frozen=True, slots=True)
class Backoff:
    """The pauses before restarts, in seconds: ``start``, doubled up to ``cap``.

    After a run of ``reset`` seconds they begin anew.
    """

    start: float = 0.5
    cap: float = 60.0
    reset: float = 10.0

    def delay(self, restarts: int) -> float:
        return float(min(self.cap, self.start * 2.0 ** min(restarts, 60)))


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of a container.  Generations count from 1; times are Unix time."""

    generation: int = 0  # the newest that was begun
    begun: float = 0.0  # when
    settled: int = 0  # the newest whose end was taken into account in this record
    stopped: bool = False  # somebody said `down`
    done: bool = False  # its policy does not want it again
    replace: int = 0  # the generation that is to end and be followed, whatever the policy
    restarts: int = 0  # in a row
    not_before: float = 0.0  # when the next one may begin

    @property
    def under_way(self) -> bool:
        """Whether there is a generation that has not ended, or not quite."""
        return self.settled < self.generation

    @property
    def wanted(self) -> bool:
        """Whether there should be one."""
        return not self.stopped and not self.done

    @property
    def ending(self) -> bool:
        """Whether the one under way is to end."""
        return self.stopped or self.replace == self.generation

    def begin(self, now: float) -> Record:
        return replace(self, generation=self.generation + 1, begun=now)

    def up(self) -> Record:
        """Somebody wants it to run, whatever happened before."""
        return replace(self, stopped=False, done=False, restarts=0, not_before=0.0)

    def again(self) -> Record:
        """What is under way is to be replaced."""
        return replace(self.up(), replace=self.generation)

    def settle(self, code: int | None, at: float, restart: Restart, backoff: Backoff) -> Record:
        """Take the end of the newest generation into account."""
        settled = replace(self, settled=self.generation)
        if self.replace == self.generation:
            return replace(settled, restarts=0, not_before=0.0)
        count = 0 if at - self.begun >= backoff.reset else self.restarts
        if self.stopped:
            return replace(settled, restarts=0)
        if not restart.wants(code, count):
            return replace(settled, done=True, restarts=count)
        return replace(settled, restarts=count + 1, not_before=at + backoff.delay(count))

    def wait(self, now: float, backoff: Backoff) -> float:
        """Return how many seconds the next beginning is away; a clock set back costs no more."""
        return min(max(0.0, self.not_before - now), backoff.cap)
