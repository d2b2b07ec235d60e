"""The daemon: runs the containers, receives their shims' events, serves requests.

No container ends when the daemon exits.  After an exit or a crash, the next daemon
finds each shim by the state directory::

    lock            held by the running daemon
    control.sock    for requests, events.sock for the shims
    exits.jsonl     the exit of each generation
    logs/           the output of the containers without another log file
    containers/NAME/record.json, spec.json, and a directory for the newest generation
"""

from __future__ import annotations

import fcntl
import os
import signal
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

import shimctl
from minid import control
from minid.config import Settings, Spec, load
from minid.container import Container, read_spec
from minid.failures import EXPECTED, log_line
from minid.generation import Place
from minid.ledger import End, Ledger
from minid.policy import ALWAYS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAX_STARTING = 4  # containers at a time
_UP_TIMEOUT = 60.0  # s that `up` and `restart` wait for containers to run


@contextmanager
def open_state(state: Path) -> Iterator[None]:
    """Hold the lock of the state directory during the block.

    :raises ExistsError: another minid holds it.
    """
    for directory in (state, state / "containers", state / "logs"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise shimctl.ExistsError(f"another minid uses {state}; stop it first") from None
        yield
    finally:
        os.close(fd)


async def run(file: Path) -> None:
    """Run the containers of ``file`` until SIGTERM or SIGINT; read it again on SIGHUP."""
    settings = load(file)
    with open_state(settings.state), Ledger(settings.state / "exits.jsonl") as ledger:
        async with trio.open_nursery() as nursery:
            minid = Minid(file, settings, ledger, nursery)
            with trio.open_signal_receiver(
                signal.SIGTERM, signal.SIGINT, signal.SIGHUP
            ) as signals:
                minid.restore()  # before the shims send the events that they kept
                await nursery.start(shimctl.serve_events, minid.place.events, minid.take_event)
                await nursery.start(control.serve, settings.state / "control.sock", minid.do)
                log_line(f"{len(minid.containers)} containers, state in {settings.state}")
                async for number in signals:
                    if number != signal.SIGHUP:
                        break
                    try:
                        minid.reload()
                    except EXPECTED as exc:
                        log_line(str(exc))
            nursery.cancel_scope.cancel()
    log_line("exiting; the containers keep running")


class Minid:
    """The containers, by name."""

    def __init__(
        self, file: Path, settings: Settings, ledger: Ledger, nursery: trio.Nursery
    ) -> None:
        self.place = Place(
            settings.state,
            settings.namespace,
            ledger,
            trio.CapacityLimiter(_MAX_STARTING),
        )
        self.containers: dict[str, Container] = {}
        self._file = file
        self._settings = settings
        self._nursery = nursery

    def restore(self) -> None:
        """Add the containers of the state directory, then apply the file."""
        for home in sorted((self.place.state / "containers").iterdir()):
            spec = read_spec(home) or Spec(home.name)
            self._add(spec, self._settings.base)
        self.apply(self._settings)
        for spec in self._settings.containers:
            container = self.containers[spec.name]
            if spec.restart.kind == ALWAYS and container.record.stopped:
                container.up()

    def reload(self) -> None:
        """Read the file again and apply it.

        :raises InvalidError: the file is invalid, or changes ``state`` or ``namespace``,
            which only a new start of minid can.
        """
        settings = load(self._file)
        for key in ("state", "namespace"):
            if getattr(settings, key) != getattr(self._settings, key):
                raise shimctl.InvalidError(
                    f"{self._file}: {key}: cannot be changed while minid runs; restart it"
                )
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Add, change and remove containers to match ``settings``."""
        self._settings = settings
        wanted = {spec.name: spec for spec in settings.containers}
        for name, container in self.containers.items():
            if name not in wanted and not container.removed:
                container.remove()
        for name, spec in wanted.items():
            if name in self.containers:
                self.containers[name].apply(spec, settings.base)
            else:
                self._add(spec, settings.base)

    def _add(self, spec: Spec, base: Path) -> None:
        container = self.containers[spec.name] = Container(self.place, spec, base)
        self._nursery.start_soon(self._run_container, container)

    async def _run_container(self, container: Container) -> None:
        await container.run()
        if self.containers.get(container.name) is container:
            del self.containers[container.name]

    async def take_event(self, event: shimctl.Event) -> None:
        """Record the exit of an init process; returning acknowledges the event."""
        if not isinstance(event, shimctl.TaskExit) or event.namespace != self.place.namespace:
            return
        name, _, number = event.container_id.rpartition(".")
        if not event.is_init or not number.isdecimal():
            return  # the exit of an exec, or an unknown container
        container = self.containers.get(name)
        if container is None or int(number) != container.record.generation:
            return  # an older generation: its exit was recorded before the next began
        at = (event.exited_at or datetime.now(UTC)).timestamp()
        self.place.ledger.record(End(name, int(number), event.exit_status, at))

    async def do(self, verb: str, name: str) -> dict[str, Any]:
        """Run a request; return the containers as ``ps`` shows them afterwards.

        :raises NotFoundError: there is no container ``name``.
        :raises InvalidError: for ``up``: the file is invalid.
        """
        if verb == "up":
            self.reload()
        # A removed container that still runs is only for ps and down.
        existing = {one.name: one for one in self.containers.values() if not one.removed}
        if verb in ("ps", "down"):
            existing = dict(self.containers)
        if name and name not in existing:
            known = ", ".join(sorted(existing)) or "none"
            raise shimctl.NotFoundError(f"there is no container {name}; use one of: {known}")
        chosen = [existing[name]] if name else list(existing.values())
        if verb != "ps":
            for container in chosen:
                getattr(container, verb)()
            bound = float("inf") if verb == "down" else _UP_TIMEOUT
            with trio.move_on_after(bound):
                async with trio.open_nursery() as nursery:
                    for container in chosen:
                        waiting = container.wait_ended if verb == "down" else container.wait_up
                        nursery.start_soon(partial(waiting))
            chosen = [one for one in chosen if not one.finished]
        return {"containers": [one.describe() for one in chosen]}
