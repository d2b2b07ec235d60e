"""A container by name: decides when to start, replace and end its generations.

Each container has one task.  All its decisions depend on its :class:`Record` and on
the ledger.  Both are written to disk before minid acts on them.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from minid import bundle
from minid.config import Spec, parse_container
from minid.failures import EXPECTED, Problems, first_in, log_line
from minid.generation import Generation, Place
from minid.ledger import read_record, write_json
from minid.logs import LogFile
from minid.policy import Record
from shimctl import InvalidError, remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from minid.ledger import End

_RETRY_INTERVAL = 1.0  # s before a step that failed is tried again


def home_of(state: Path, name: str) -> Path:
    return state / "containers" / name


def read_spec(home: Path) -> Spec | None:
    """Return the spec of the newest generation in ``home``, None if it cannot be read."""
    path = home / "spec.json"
    try:
        saved = json.loads(path.read_bytes())
        return parse_container(saved["name"], saved["written"], Path(saved["base"]), str(path))
    except (OSError, ValueError, KeyError, TypeError, InvalidError):
        return None


class Container:
    """One container.  ``home`` is its directory, with that of the newest generation in it."""

    def __init__(self, place: Place, spec: Spec, base: Path) -> None:
        self.name = spec.name
        self.place = place
        self.home = home_of(place.state, spec.name)
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.record = read_record(self.home / "record.json") or self._record_from_traces()
        self.generation: Generation | None = None
        self.removed = False
        self.finished = False
        self.problems = Problems(spec.name)
        self._base = base
        self._spec = spec
        self._log = LogFile(*self._log_of(spec))
        self._changes = trio.Event()
        self._made_for = read_spec(self.home) or spec
        self.apply(spec, base)

    # -- the interface for the daemon ------------------------------------------------

    def apply(self, spec: Spec, base: Path) -> None:
        """Use ``spec`` from now on; replace the generation if the change needs a new one."""
        revived = self.removed and self.record.under_way  # its end has begun
        if (revived or spec.needs_new_generation(self._made_for)) and not self.record.stopped:
            self._save(self.record.again())
        self._spec, self._base = spec, base
        self._log.reopen_at(*self._log_of(spec))
        self.removed = False
        self._notify()

    def up(self) -> None:
        """Start the container now, also after ``down`` or if its restart policy has ended it."""
        if self.record.under_way and self.record.stopped:
            self._save(self.record.again())  # its end has begun
        elif not self.record.under_way:
            self._save(self.record.up())

    def down(self) -> None:
        """End the container, and start it only by :meth:`up` or :meth:`restart`."""
        self._save(replace(self.record, stopped=True))

    def restart(self) -> None:
        """Replace the current generation by a new one."""
        self._save(self.record.again())

    def remove(self) -> None:
        """End the container and remove its directory; then :meth:`run` returns."""
        self.removed = True
        self._notify()

    async def wait_ended(self) -> None:
        """Wait until no generation is under way."""
        await self._until(lambda: not self.record.under_way)

    async def wait_up(self) -> None:
        """Wait until the container runs, is stopped, has exited or waits for a restart."""
        await self._until(
            lambda: (
                self.removed
                or (
                    self.status in {"running", "stopped", "exited", "failed", "waiting"}
                    and not (self.record.under_way and self.record.ending)
                )
            )
        )

    @property
    def status(self) -> str:
        if self.generation is not None:
            return self.generation.status
        if self.record.under_way:
            return "starting"
        if self.record.wanted:
            return "waiting" if self.record.not_before > time.time() else "starting"
        if self.record.stopped:
            return "stopped"
        last = self.place.ledger.find(self.name, self.record.generation)
        return "exited" if last is None or last.code is not None else "failed"

    def describe(self) -> dict[str, Any]:
        """Return the fields that ``ps`` shows, as JSON values."""
        last = self.place.ledger.last.get(self.name)
        return {
            "name": self.name,
            "status": self.status,
            "generation": self.record.generation,
            "pid": self.generation.pid if self.generation else 0,
            "restarts": self.record.restarts,
            "code": last.code if last else None,
            "reason": last.reason if last else "",
            "problem": str(self.problems),
        }

    def _record_from_traces(self) -> Record:
        """Return the record to use if none was saved.

        Continue the numbers of the ledger and of the directories: a removed name may be
        used again.
        """
        last = self.place.ledger.last.get(self.name)
        ended = last.generation if last else 0
        there = [int(one.name) for one in self.home.iterdir() if one.name.isdecimal()]
        newest = max(there, default=0)
        if newest >= ended:
            return Record(generation=newest, settled=max(0, newest - 1))
        return Record(generation=ended, settled=ended)

    # -- the task --------------------------------------------------------------------

    async def run(self) -> None:
        """Run the container until it is removed."""
        while not self.finished:
            try:
                await self._step()
                self.problems.report("step", "")
            except* EXPECTED as group:
                text = f"{first_in(group)}; trying again every {_RETRY_INTERVAL:g} s"
                self.problems.report("step", text)
                await trio.sleep(_RETRY_INTERVAL)
        self._log.close()

    async def _step(self) -> None:
        record = self.record
        if record.under_way:
            end = await self._run_generation(self.home / str(record.generation))
            spec = self._spec
            self._save(self.record.settle(end.code, end.at, spec.restart, spec.backoff))
            self._log_end(end)
        elif self.removed:
            remove_tree(self.home)
            self.finished = True
            self._notify()
        elif not record.wanted:
            await self._changes.wait()
        elif wait := record.wait(time.time(), self._spec.backoff):
            with trio.move_on_after(wait):
                await self._changes.wait()
        else:
            self._made_for = self._spec
            write_json(
                self.home / "spec.json",
                {"written": self._spec.written, "base": str(self._base), "name": self.name},
            )
            self._save(record.begin(time.time()))

    def _log_end(self, end: End) -> None:
        """Log why a generation could not be started, or why the code is not its own."""
        if not end.reason or self.record.stopped or self.removed:
            return
        name = f"{self.name}.{end.generation}"
        what = "cannot start" if end.code is None else f"exit code {end.code}"
        if self.record.done:
            then = "its restart policy ends here; use `minid up`"
        else:
            then = f"starting again in {self.record.wait(time.time(), self._spec.backoff):.1f} s"
        log_line(f"{name}: {what}: {end.reason}; {then}")

    async def _run_generation(self, home: Path) -> End:
        """Drive the newest generation from its present state to its end."""
        generation = Generation(
            self.place, home, self.name, self._made_for, self._notify, self.problems.report
        )
        end = self.place.ledger.find(self.name, generation.number)
        if end is None and not bundle.is_complete(home):
            try:
                await bundle.make(home, self._made_for, f"/{self.place.namespace}/{generation.id}")
            except EXPECTED as exc:
                return generation.record(None, reason=str(exc))
            if self.removed or self.record.ending:  # unpacking an image may take minutes
                return generation.record(None, reason="stopped before it was started")
        if end is not None and not home.is_dir():
            return end
        self.generation = generation
        self._notify()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_when_ending, generation)
                end = await generation.drive(self._log)
                nursery.cancel_scope.cancel()
        finally:
            self.generation = None
        for step in ("shim", "stop"):  # its shim is gone, with its problems
            self.problems.report(step, "")
        return end

    async def _stop_when_ending(self, generation: Generation) -> None:
        await self._until(lambda: self.removed or self.record.ending)
        await generation.stop(self._spec.grace)

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            await self._changes.wait()

    def _notify(self) -> None:
        changes, self._changes = self._changes, trio.Event()
        changes.set()

    def _save(self, record: Record) -> None:
        write_json(self.home / "record.json", asdict(record))
        self.record = record
        self._notify()

    def _log_of(self, spec: Spec) -> tuple[Path, int, int]:
        return spec.log_in(self.place.state), spec.log.size, spec.log.count
