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
        self.are_ending = False
        self._init = parts.init
        self._execs = parts.execs
        self._bundle = parts.bundle
        self._runc = parts.runc
        self._host = parts.host
        self._group = parts.group
        self._events = parts.events
        self._saved = parts.saved
        self._own_pid_namespace = parts.config.own_pid_namespace

    def follow_init(self) -> None:
        """Publish the exit of the init process when it has exited, if there is one."""
        child = self._init.child
        if child is not None:
            self._host.go(lambda: self._await_init(child))

    def follow_exec(self, process: Process, child: Child) -> None:
        """Publish the exit of the exec ``process`` when ``child`` has exited."""
        self._host.go(lambda: self._await_exec(process, child))

    async def _await_init(self, child: Child) -> None:
        exit_ = await self._init.record_exit(child, self._bundle)
        self.are_ending = True
        self._group.report_oom()  # before systemd removes a cgroup that it manages
        await self._init.wait_output_read()
        if self._own_pid_namespace and not self._execs and not self._init.busy.locked():
            # No process was left in the pid namespace to be killed after the report.
            self._publish_exit(exit_)
            return
        # A concurrent Start publishes its event first.
        async with self._init.busy:
            if not self._own_pid_namespace:
                await self._kill_remaining()
            with trio.move_on_after(EXECS_EXIT) as scope:
                await self._wait_for_execs()
            if scope.cancelled_caught:
                log.error(
                    "an exec did not exit after the init process; its exit follows later",
                    id=self._events.id,
                )
            self._group.report_oom()
            self._publish_exit(exit_)

    def _publish_exit(self, exit_: Exit) -> None:
        self._init.set_exit(exit_)
        self._events.exited("", exit_)
        self._saved.forget("")

    async def _kill_remaining(self) -> None:
        """Kill the remaining processes of a container without its own pid namespace.

        In a pid namespace the kernel kills them when the init process exits.
        """
        try:
            if self._group.cgroup is not None:
                self._group.cgroup.signal_all(SIGKILL)
            else:
                await self._runc.run("kill", "--all", self._events.id, str(SIGKILL))
        except (ShimError, OSError) as exc:
            log.warning("cannot kill the remaining processes", id=self._events.id, error=exc)

    async def _wait_for_execs(self) -> None:
        late = [one for one in self._execs.values() if one.state is State.CREATED]
        for process in late:
            async with process.busy:  # a concurrent Start
                pass
        if late and not self._own_pid_namespace:
            await self._kill_remaining()  # also the execs that started meanwhile
        for process in list(self._execs.values()):
            if process.state is not State.CREATED:
                await process.wait()

    async def _await_exec(self, process: Process, child: Child) -> None:
        exit_ = await process.record_exit(child, self._bundle)
        await process.wait_output_read()
        process.set_exit(exit_)
        self._events.exited(process.id, exit_)
        self._saved.forget(process.id)
