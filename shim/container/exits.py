"""Waits for the exits of a container's processes, and publishes them in order.

An exec that has exited is published before the init process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from shim import log
from shim.container.freezer import SIGKILL
from shim.container.lifecycle import State
from shim.errors import ShimError

if TYPE_CHECKING:
    from shim.child import Child
    from shim.container.parts import ContainerParts
    from shim.container.process import Process
    from shim.exit import Exit

# Seconds between the exit of the init process and the exits of its execs.
EXECS_EXIT = 10.0


class Exits:
    """The exits of the processes of the container with ``parts``.

    ``are_ending`` is set when the init process has exited, before that is published.
    """

    def __init__(self, parts: ContainerParts) -> None:
        self._parts = parts
        self.are_ending = False
        self._own_pid_namespace = parts.config.own_pid_namespace

    def follow_init(self) -> None:
        """Publish the exit of the init process when it has exited, if there is one."""
        child = self._parts.init.child
        if child is not None:
            self._parts.host.go(lambda: self._await_init(child))

    def follow_exec(self, process: Process, child: Child) -> None:
        """Publish the exit of the exec ``process`` when ``child`` has exited."""
        self._parts.host.go(lambda: self._await_exec(process, child))

    async def _await_init(self, child: Child) -> None:
        exit_ = await self._parts.init.record_exit(child, self._parts.bundle)
        self.are_ending = True
        self._parts.group.report_oom()  # before systemd removes a cgroup that it manages
        await self._parts.init.wait_output_read()
        if (
            self._own_pid_namespace
            and not self._parts.execs
            and not self._parts.init.busy.locked()
        ):
            # No process was left in the pid namespace to be killed after the report.
            self._publish_exit(exit_)
            return
        # A concurrent Start publishes its event first.
        async with self._parts.init.busy:
            if not self._own_pid_namespace:
                await self._kill_remaining()
            with trio.move_on_after(EXECS_EXIT) as scope:
                await self._wait_for_execs()
            if scope.cancelled_caught:
                log.error(
                    "an exec did not exit after the init process; its exit follows later",
                    id=self._parts.events.id,
                )
            self._parts.group.report_oom()
            self._publish_exit(exit_)

    def _publish_exit(self, exit_: Exit) -> None:
        self._parts.init.set_exit(exit_)
        self._parts.events.exited("", exit_)
        self._parts.init.note_published(self._parts.bundle)
        self._parts.saved.forget("")

    async def _kill_remaining(self) -> None:
        """Kill the remaining processes of a container without its own pid namespace.

        In a pid namespace the kernel kills them when the init process exits.
        """
        try:
            if self._parts.group.cgroup is not None:
                self._parts.group.cgroup.signal_all(SIGKILL)
            else:
                await self._parts.runc.run("kill", "--all", self._parts.events.id, str(SIGKILL))
        except (ShimError, OSError) as exc:
            log.warning("cannot kill the remaining processes", id=self._parts.events.id, error=exc)

    async def _wait_for_execs(self) -> None:
        late = [one for one in self._parts.execs.values() if one.state is State.CREATED]
        for process in late:
            async with process.busy:  # a concurrent Start
                pass
        if late and not self._own_pid_namespace:
            await self._kill_remaining()  # also the execs that started meanwhile
        for process in list(self._parts.execs.values()):
            if process.state is not State.CREATED:
                await process.wait()

    async def _await_exec(self, process: Process, child: Child) -> None:
        exit_ = await process.record_exit(child, self._parts.bundle)
        await process.wait_output_read()
        process.set_exit(exit_)
        self._parts.events.exited(process.id, exit_)
        process.note_published(self._parts.bundle)
        self._parts.saved.forget(process.id)
