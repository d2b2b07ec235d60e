"""One generation of a container, from its bundle to the line about its exit.

:meth:`Generation.drive` continues from the generation's present state.  It gets the
state from the ledger, the bundle and the shim only.  Each step may be repeated:

- a second launch returns the shim of the first, since the shim's socket is its lock;
- if ``Create`` fails because an earlier one is running, drive waits for its result;
- ``Start`` is refused unless the container is created and not started;
- the exit is recorded once, by the first source that reports it, before ``Delete``.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import trio

import shimctl
from minid import bundle
from minid.failures import EXPECTED, log_line
from minid.ledger import End, Ledger
from minid.logs import copy, open_fifos

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from minid.config import Spec
    from minid.logs import LogFile
    from shimctl import Shim, Task

CREATE_TIMEOUT = 150.0  # s for a Create; the shim's limit for its runtime is shorter
OUTPUT_TIMEOUT = 10.0  # s without output after the container's exit
MAX_LAUNCHES = 3  # shims that may exit before they have a container
RETRY_INTERVAL = 0.1  # s between two attempts


@dataclass(frozen=True, slots=True)
class Place:
    """The values that all containers share.  ``turns`` limits how many start at a time."""

    state: Path
    namespace: str
    ledger: Ledger
    turns: trio.CapacityLimiter

    @property
    def events(self) -> Path:
        return self.state / "events.sock"


class Generation:
    """Generation ``number`` of container ``name``, with the directory ``home``.

    ``changed`` is called after each change of ``status`` or ``pid``.  ``report`` is called
    with a step and its failure, and with an empty text when the step works again.
    """

    def __init__(
        self,
        place: Place,
        home: Path,
        name: str,
        spec: Spec,
        changed: Callable[[], object],
        report: Callable[[str, str], object],
    ) -> None:
        self.place = place
        self.home = home
        self.name = name
        self.number = int(home.name)
        self.id = f"{name}.{self.number}"
        self.status = "starting"
        self.pid = 0
        self._spec = spec
        self._changed = changed
        self._report = report

    async def drive(self, log: LogFile) -> End:
        """Run the generation to its end with its output in ``log``; remove it, return its end."""
        with open_fifos(self.home, ("stdout", "stderr")) as fifos:
            async with trio.open_nursery() as nursery:
                for fifo in fifos:
                    nursery.start_soon(copy, fifo, log, partial(self._report, f"output {fifo}"))
                end = self.place.ledger.find(self.name, self.number)
                if end is None:
                    end = await self._launch_and_follow()
                nursery.cancel_scope.cancel()
            self._set_status("ending")
            # Before Delete: at Delete the shim discards unread output.
            for fifo in fifos:
                report = partial(self._report, f"output {fifo}")
                if not await copy(fifo, log, report, OUTPUT_TIMEOUT):
                    log_line(
                        f"{self.id}: cannot read or store the last part of its output; it is lost"
                    )
                report("")
        # Delete the container, shut its shim down and remove their files.
        await shimctl.dispose(self.home, self.id, namespace=self.place.namespace)
        bundle.remove(self.home)
        return end

    def record(self, code: int | None, at: datetime | None = None, reason: str = "") -> End:
        """Record the end of the generation, unless it is recorded; return the recorded end."""
        moment = (at or datetime.now(UTC)).timestamp()
        return self.place.ledger.record(End(self.name, self.number, code, moment, reason))

    async def stop(self, grace: float) -> None:
        """Send SIGTERM, and SIGKILL after ``grace`` seconds; run until cancelled."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._set_status("stopping")
            while not await self._signal(number):  # noqa: ASYNC110 - there is no event
                await trio.sleep(RETRY_INTERVAL)
            if number is signal.SIGTERM:
                await trio.sleep(grace)
        await trio.sleep_forever()

    async def _signal(self, number: signal.Signals) -> bool:
        """Send a signal to the init process; return whether it was sent."""
        try:
            async with self._connect(shimctl.read_address(self.home)) as shim:
                # Only to the init process; the others end with it.  If its children got the
                # signal too, init could see them die and exit with another code.
                await shim.task(self.id).kill(number)
        except (shimctl.NotFoundError, shimctl.UnavailableError, shimctl.WrongStateError):
            return False  # no container yet, or no more; then this task is cancelled soon
        except EXPECTED as exc:
            self._report("stop", f"cannot send {number.name}: {exc}; trying again")
            return False
        self._report("stop", "")
        return True

    def _set_status(self, status: str) -> None:
        self.status = status
        self._changed()

    def _connect(self, address: str) -> AbstractAsyncContextManager[Shim]:
        return shimctl.connect(address, namespace=self.place.namespace)

    # -- from the launch to the end ----------------------------------------------

    async def _launch_and_follow(self) -> End:
        launches = 0
        while True:
            reached = False
            try:
                address = await self._launch()
            except EXPECTED as exc:
                return self.record(None, reason=str(exc))
            try:
                async with self._connect(address) as shim:
                    reached = True
                    self._report("shim", "")
                    return await self._follow(shim)
            except shimctl.TimedOutError as exc:
                self._report("shim", f"{exc}; trying again")
            except shimctl.UnavailableError as exc:
                self._report("shim", f"lost its shim: {exc}")
                if not reached:
                    launches += 1
                    if (
                        end := await self._end_without_shim(last=launches == MAX_LAUNCHES)
                    ) is not None:
                        return end
            await trio.sleep(RETRY_INTERVAL)

    async def _launch(self) -> str:
        """Return the address of the shim; start the shim if there is none."""
        if (self.home / "bootstrap.json").exists():
            try:
                return shimctl.read_address(self.home)
            except (shimctl.NotFoundError, shimctl.InvalidError):
                return ""  # the connection then fails as that to a dead shim
        async with self.place.turns:
            launched = await shimctl.launch(
                self.home,
                self.id,
                namespace=self.place.namespace,
                events=self.place.events,
            )
        return launched.address

    async def _follow(self, shim: Shim) -> End:
        task = shim.task(self.id)
        try:
            async with self.place.turns:
                await self._create(shim, task)
                if (await task.state()).status is shimctl.Status.CREATED:
                    with suppress(shimctl.WrongStateError):  # an earlier minid started it
                        await task.start()
            state = await task.state()
        except (shimctl.UnavailableError, shimctl.TimedOutError):
            raise
        except shimctl.ShimError as exc:
            return self.record(None, reason=str(exc))
        self.pid = state.pid
        self._set_status("running")
        exited = await task.wait()
        return self.record(exited.exit_status, exited.exited_at)

    async def _create(self, shim: Shim, task: Task) -> None:
        """Create the container unless it exists; wait for a Create that is running."""
        with trio.move_on_after(CREATE_TIMEOUT):
            while True:
                with suppress(shimctl.NotFoundError):
                    await task.state()
                    return
                with suppress(shimctl.ExistsError):
                    await shim.create(
                        self.id,
                        str(self.home),
                        stdio=self._stdio(),
                        rootfs=bundle.mounts_in(self.home),
                    )
                    return
                await trio.sleep(RETRY_INTERVAL)
        raise shimctl.ExistsError(
            f"cannot create {self.id}: the runtime has another container of that id; delete that"
        )

    def _stdio(self) -> shimctl.Stdio:
        paths = {name: str(self.home / name) for name in ("stdout", "stderr")}
        if self._spec.tty:
            paths["stderr"] = ""
        return shimctl.Stdio(stdin=self._spec.stdin, terminal=self._spec.tty, **paths)

    # -- the end -----------------------------------------------------------------

    async def _end_without_shim(self, *, last: bool) -> End | None:
        """Record the end of a generation without a shim; kill its remaining processes.

        Return None if the container was never created: for example, a shim without a
        container exits after 30 s.  Then the caller starts another shim.  If this was
        the ``last`` attempt, record that the container could not be created.
        """
        if (found := shimctl.read_exit(self.home)) is not None:
            return self.record(found.exit_status, found.exited_at)
        response = await shimctl.run_delete(self.home, self.id, namespace=self.place.namespace)
        if response is not None and response.pid:
            return self.record(response.exit_status, response.exited_at, "its shim was killed")
        (self.home / "bootstrap.json").unlink(missing_ok=True)
        reason = "cannot create the container: its shims exited before"
        return self.record(None, reason=reason) if last else None
