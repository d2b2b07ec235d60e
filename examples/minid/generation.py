"""One life of a container, from its bundle to the line that says how it ended.

:meth:`Generation.drive` goes on from wherever the generation is.  Nothing tells
it that but the ledger, the bundle and the shim, and each step may be repeated:

- a shim that is started twice is the same shim, for its socket is its lock;
- a ``Create`` that is refused because somebody asked before is waited for;
- a ``Start`` is refused unless the container was only created;
- an end is written down once, whoever tells of it, and before the ``Delete``.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
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

CREATE_TIMEOUT = 150.0  # s for a Create, which is bounded by the shim's limit for its runtime
OUTPUT_TIMEOUT = (
    10.0  # s without any output, once the container has ended, before the rest is lost
)
MAX_LAUNCHES = 3  # shims that may be gone before they have a container
RETRY_INTERVAL = 0.1  # s between two attempts to reach somebody


@dataclass(frozen=True, slots=True)
class Place:
    """What all containers have in common.  ``turns`` bounds how many start at a time."""

    state: Path
    namespace: str
    ledger: Ledger
    turns: trio.CapacityLimiter

    @property
    def events(self) -> Path:
        return self.state / "events.sock"


class Generation:
    """Number ``number`` of container ``name``, whose directory is ``home``.

    ``changed`` is called whenever ``status`` or ``pid`` has another value.
    """

    def __init__(
        self, place: Place, home: Path, name: str, spec: Spec, changed: Callable[[], object]
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

    async def drive(self, log: LogFile) -> End:
        """See it to its end, with its output in ``log``; leave nothing of it behind."""
        with open_fifos(self.home, ("stdout", "stderr")) as fifos:
            async with trio.open_nursery() as nursery:
                for fifo in fifos:
                    nursery.start_soon(copy, fifo, log, log_line)
                end = self.place.ledger.find(self.name, self.number)
                if end is None:
                    end = await self._launch_and_follow()
                nursery.cancel_scope.cancel()
            self._set_status("ending")
            # Before the Delete: with it the shim lets go of what nobody has read.
            for fifo in fifos:
                if not await copy(fifo, log, log_line, OUTPUT_TIMEOUT):
                    log_line(f"{self.id}: the rest of its output cannot be had, or cannot be kept")
        # The container, its shim, and whatever neither can remove.
        await shimctl.dispose(self.home, self.id, namespace=self.place.namespace)
        bundle.remove(self.home)
        return end

    def record(self, code: int | None, at: datetime | None = None, reason: str = "") -> End:
        """Write down how it ended, unless that is known already."""
        moment = (at or datetime.now(UTC)).timestamp()
        return self.place.ledger.record(End(self.name, self.number, code, moment, reason))

    async def stop(self, grace: float) -> None:
        """Ask it to end, insist after ``grace`` seconds; goes on until cancelled."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._set_status("stopping")
            while not await self._signal(number):  # noqa: ASYNC110 - nothing tells when it can be
                await trio.sleep(RETRY_INTERVAL)
            if number is signal.SIGTERM:
                await trio.sleep(grace)
        await trio.sleep_forever()

    async def _signal(self, number: int) -> bool:
        """Send a signal to the container; say whether there is no need to try again."""
        try:
            async with self._connect(shimctl.read_address(self.home)) as shim:
                # The init, which takes all others with it.  Who was told at the same time
                # as its children may live to see them die, and end with a code of its own.
                await shim.task(self.id).kill(number)
        except EXPECTED:
            return False  # not there yet, or no longer: then we are cancelled soon
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
                    return await self._follow(shim)
            except shimctl.TimedOutError as exc:
                log_line(f"{self.id}: {exc}")
            except shimctl.UnavailableError:
                if not reached:
                    launches += 1
                    if (
                        end := await self._end_without_shim(last=launches == MAX_LAUNCHES)
                    ) is not None:
                        return end
            await trio.sleep(RETRY_INTERVAL)

    async def _launch(self) -> str:
        """Return the address of its shim, which is started if we know of none."""
        if (self.home / "bootstrap.json").exists():
            return shimctl.read_address(self.home)
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
                    with suppress(shimctl.WrongStateError):  # by who was here before us
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
        """Create the container, unless there is one; wait if somebody else is about to."""
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
        raise shimctl.ExistsError(f"{self.id} exists and is not ours; remove it from the runtime")

    def _stdio(self) -> shimctl.Stdio:
        paths = {name: str(self.home / name) for name in ("stdout", "stderr")}
        if self._spec.tty:
            paths["stderr"] = ""
        return shimctl.Stdio(stdin=self._spec.stdin, terminal=self._spec.tty, **paths)

    # -- the end -----------------------------------------------------------------

    async def _end_without_shim(self, *, last: bool) -> End | None:
        """Say how it ended, when its shim is gone; what still runs of it ends now.

        None means that it never was: a shim leaves when nobody wants anything of
        it for half a minute, say.  Unless this was the ``last``, another is due.
        """
        if (found := shimctl.read_exit(self.home)) is not None:
            return self.record(found.exit_status, found.exited_at)
        response = await shimctl.run_delete(self.home, self.id, namespace=self.place.namespace)
        if response is not None and response.pid:
            return self.record(response.exit_status, response.exited_at, "its shim was killed")
        (self.home / "bootstrap.json").unlink(missing_ok=True)
        reason = "its shims are gone before it is made"
        return self.record(None, reason=reason) if last else None
