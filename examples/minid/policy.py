"""Decides when a container runs again, from its record; no I/O happens here.

A :class:`Record` is all that minid knows of a container beyond its bundle.  Each
change is written to disk before minid acts on it.  So a minid that was killed in
between reads the record at its next start and continues.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

NO, ON_FAILURE, ALWAYS, UNLESS_STOPPED = KINDS = ("no", "on-failure", "always", "unless-stopped")


@dataclass(frozen=True, slots=True)
class Restart:
    """The restart policy; ``most`` is the limit of restarts in a row, None for no limit."""

    kind: str = NO
    most: int | None = None

    def wants(self, code: int | None, restarts: int) -> bool:
        """Return whether to restart after an exit with ``code``, and ``restarts`` in a row.

        ``code`` is None if the container could not be started.
        """
        if self.kind == NO or (self.kind == ON_FAILURE and code == 0):
            return False
        return self.most is None or restarts < self.most


@dataclass(frozen=True, slots=True)
class Backoff:
    """The pauses before restarts, in seconds: ``start``, doubled up to ``cap``.

    After a run of ``reset`` seconds the next pause is ``start`` again.
    """

    start: float = 0.5
    cap: float = 60.0
    reset: float = 10.0

    def delay(self, restarts: int) -> float:
        return float(min(self.cap, self.start * 2.0 ** min(restarts, 60)))


@dataclass(frozen=True, slots=True)
class Record:
    """The saved state of a container.  Generations count from 1; times are Unix times."""

    generation: int = 0  # the newest that was started
    begun: float = 0.0  # when it was started
    settled: int = 0  # the newest with its end included in this record
    stopped: bool = False  # by `down`
    done: bool = False  # its policy does not restart it
    replace: int = 0  # the generation to end and replace, under every policy
    restarts: int = 0  # in a row
    not_before: float = 0.0  # the earliest start of the next one

    @property
    def under_way(self) -> bool:
        """Whether the newest generation has not ended, or its end is not included yet."""
        return self.settled < self.generation

    @property
    def wanted(self) -> bool:
        """Whether the container should run."""
        return not self.stopped and not self.done

    @property
    def ending(self) -> bool:
        """Whether the newest generation is to end."""
        return self.stopped or self.replace == self.generation

    def begin(self, now: float) -> Record:
        """Return the record after the start of the next generation."""
        return replace(self, generation=self.generation + 1, begun=now)

    def up(self) -> Record:
        """Return the record after a request to run it."""
        return replace(self, stopped=False, done=False, restarts=0, not_before=0.0)

    def again(self) -> Record:
        """Return the record after a request to replace the newest generation."""
        return replace(self.up(), replace=self.generation)

    def settle(self, code: int | None, at: float, restart: Restart, backoff: Backoff) -> Record:
        """Return the record that includes the end of the newest generation."""
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
        """Return the seconds until the next start, at most ``cap`` if the clock was set back."""
        return min(max(0.0, self.not_before - now), backoff.cap)
