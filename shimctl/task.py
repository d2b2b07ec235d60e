"""One process of a container: the calls of the Task API that concern it.

Source: containerd api/runtime/task/v3/shim.proto; the runc options and JSON payloads are
those of containerd's api/types/runc/options and pkg/oci.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shim.api import task_pb2 as api
from shim.errors import ExistsError, NotFoundError
from shimctl.bundles import process_for, read_config
from shimctl.checks import check_id, signal_number
from shimctl.execfifos import open_directory, remove_left
from shimctl.options import checkpoint_options, json_value, make_message
from shimctl.values import Exited, Stdio, pids_of, state_of, stats_of, time_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from google.protobuf.any_pb2 import Any as AnyMessage

    from shimctl.client import Shim
    from shimctl.process import Process
    from shimctl.values import Finished, Pid, Stats, TaskState

CALL_TIMEOUT = 30  # s; a call that runs a runtime command may take several seconds


class Task:
    """One process of a container: its init process, or the exec ``exec_id``."""

    def __init__(self, shim: Shim, task_id: str, exec_id: str = "") -> None:
        self.shim = shim
        self.id = task_id
        self.exec_id = exec_id

    def __repr__(self) -> str:
        exec_ = f" exec {self.exec_id!r}" if self.exec_id else ""
        return f"<Task {self.id!r}{exec_}>"

    async def start(self, *, timeout: float = CALL_TIMEOUT) -> int:
        """Start the process; return its pid.

        :raises WrongStateError: the process was started before.  Some shims' status maps to
            ShimError.
        """
        request = make_message(api.StartRequest, id=self.id, exec_id=self.exec_id)
        reply = await self.shim.call("Start", request, timeout)
        return int(reply.pid)

    async def exec(
        self,
        exec_id: str,
        process: Mapping[str, object] | Sequence[str],
        *,
        stdio: Stdio | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        timeout: float = CALL_TIMEOUT,
    ) -> Task:
        """Add an exec to the container and return it; :meth:`start` then runs it.

        ``process`` is a command, which runs with the environment, the directory and the user
        of the container's init process.  ``env`` adds variables, ``cwd`` and ``user``, as
        ``UID:GID`` in numbers, replace them.  Or ``process`` is a whole ``process`` object
        of an OCI config; without a ``cwd`` it gets that of the init process.

        :raises ExistsError: the container has an exec with this ``exec_id``.
        :raises InvalidError: the ``exec_id``, ``env`` or ``user`` is not valid.
        :raises NotFoundError: the container or its bundle does not exist.
        """
        stdio = stdio or Stdio()
        check_id(exec_id, "exec id")
        request = make_message(
            api.ExecProcessRequest,
            id=self.id,
            exec_id=exec_id,
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            spec=json_value("Process", await self._process(process, stdio, env, cwd, user)),
        )
        await self.shim.call("Exec", request, timeout)
        return Task(self.shim, self.id, exec_id)

    async def _process(
        self,
        process: Mapping[str, object] | Sequence[str],
        stdio: Stdio,
        env: Mapping[str, str] | None,
        cwd: str,
        user: str,
    ) -> Mapping[str, object]:
        if isinstance(process, Mapping) and process.get("cwd"):
            return process
        state = await Task(self.shim, self.id).state()
        config = read_config(Path(state.bundle))
        if isinstance(process, Mapping):
            return {
                **process,
                "cwd": cwd or process_for(config, (), terminal=False).get("cwd") or "/",
            }
        variables = [f"{name}={value}" for name, value in (env or {}).items()]
        return process_for(
            config, process, terminal=stdio.terminal, env=variables, cwd=cwd, user=user
        )

    @asynccontextmanager
    async def spawn(
        self,
        command: Sequence[str],
        *,
        stdin: bool = False,
        terminal: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        exec_id: str = "",
        replace: bool = False,
    ) -> AsyncIterator[Process]:
        """Run ``command`` in the container for the block, with its streams.

        With ``stdin`` the block has the command's stdin, else it reads /dev/null.  The end
        of the block kills the command, unless it has exited.  An exec without an
        ``exec_id`` gets a new one.  ``replace`` first kills and deletes an earlier exec with
        this ``exec_id``, which a program that was killed left behind.  The other parameters
        are those of :meth:`exec`.

        :raises ExistsError: the container has an exec with this ``exec_id``, and ``replace``
            is False.
        :raises ShimError: the runtime cannot start the command; the message is the runtime's.
        """
        name = exec_id or f"exec-{secrets.token_hex(6)}"

        async def create(stdio: Stdio) -> Task:
            add = partial(self.exec, name, command, stdio=stdio, env=env, cwd=cwd, user=user)
            try:
                return await add()
            except ExistsError:
                if not replace:
                    raise
            await Task(self.shim, self.id, name)._remove_exec()
            return await add()

        from shimctl.process import open_process  # late: it imports this module's callers

        with open_directory() as directory:
            async with open_process(
                self.shim.backend, create, directory, stdin=stdin, terminal=terminal
            ) as process:
                yield process

    async def _remove_exec(self) -> None:
        from shimctl.ending import end  # late: it imports this module's callers

        with suppress(NotFoundError):  # it has just ended
            state = await self.state()
            await end(self)
            remove_left(state.stdio.stdout)

    async def exec_output(
        self,
        command: Sequence[str],
        *,
        input: bytes = b"",  # noqa: A002 - as subprocess names it
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        timeout: float | None = None,
        check: bool = False,
    ) -> Finished:
        """Run ``command`` in the container; return its exit status and its output.

        ``input`` is written to its stdin.  ``env``, ``cwd`` and ``user`` are those of
        :meth:`exec`.

        :raises RunTimedOutError: it still runs after ``timeout`` seconds; it is killed, and
            the error has its output.
        :raises ExitStatusError: with ``check``, the exit status is not 0.
        :raises ShimError: the runtime cannot start the command; the message is the runtime's.
        """
        from shimctl.process import check_finished

        async with self.spawn(command, stdin=bool(input), env=env, cwd=cwd, user=user) as process:
            finished = await process.communicate(input, timeout=timeout)
        return check_finished(finished, command[0]) if check else finished

    async def state(self, *, timeout: float = CALL_TIMEOUT) -> TaskState:
        """Return the process's state.

        :raises NotFoundError: the shim has no such container or exec.
        """
        request = make_message(api.StateRequest, id=self.id, exec_id=self.exec_id)
        state = state_of(await self.shim.call("State", request, timeout))
        # Go's shim returns the id of an exec as ``id``, and no ``exec_id``.
        return dataclasses.replace(state, id=self.id, exec_id=self.exec_id)

    async def kill(
        self, signal: int | str, *, everyone: bool = False, timeout: float = CALL_TIMEOUT
    ) -> None:
        """Send a signal to the process, or with ``everyone`` to all processes of the container.

        ``signal`` is a number, a :class:`signal.Signals` or a name: ``"TERM"``, ``"SIGTERM"``.

        :raises NotFoundError: the process has exited.
        :raises InvalidError: no signal has this name.
        """
        number = signal_number(signal)
        request = make_message(
            api.KillRequest, id=self.id, exec_id=self.exec_id, signal=number, all=everyone
        )
        await self.shim.call("Kill", request, timeout)

    async def wait(self, *, timeout: float | None = None) -> Exited:
        """Wait until the process exits; without a ``timeout`` the wait has no limit.

        If the process has exited and is not deleted, this returns at once.

        :raises TimedOutError: the process still runs after ``timeout`` seconds.
        """
        request = make_message(api.WaitRequest, id=self.id, exec_id=self.exec_id)
        reply = await self.shim.call("Wait", request, timeout)
        return Exited(reply.exit_status, time_of(reply.exited_at))

    async def delete(self, *, timeout: float = CALL_TIMEOUT) -> Exited:
        """Delete the exited process; of an init process, also free the container's resources.

        :raises WrongStateError: the process still runs.  Some shims' status maps to
            ShimError.
        """
        request = make_message(api.DeleteRequest, id=self.id, exec_id=self.exec_id)
        reply = await self.shim.call("Delete", request, timeout)
        return Exited(reply.exit_status, time_of(reply.exited_at), reply.pid)

    async def pids(self, *, timeout: float = CALL_TIMEOUT) -> tuple[Pid, ...]:
        """List the processes of the container."""
        reply = await self.shim.call("Pids", make_message(api.PidsRequest, id=self.id), timeout)
        return pids_of(reply.processes)

    async def stats(self, *, timeout: float = CALL_TIMEOUT) -> Stats:
        """Return the container's resource usage.

        :raises UnsupportedError: the runtime has no metrics, or metrics of an unknown type.
        """
        reply = await self.shim.call("Stats", make_message(api.StatsRequest, id=self.id), timeout)
        return stats_of(reply.stats)

    async def pause(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Freeze every process of the container."""
        await self.shim.call("Pause", make_message(api.PauseRequest, id=self.id), timeout)

    async def resume(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Undo :meth:`pause`."""
        await self.shim.call("Resume", make_message(api.ResumeRequest, id=self.id), timeout)

    async def checkpoint(
        self,
        path: str | Path,
        *,
        stop: bool = False,
        work_path: str | Path = "",
        options: AnyMessage | None = None,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Write the container's memory and state into the directory ``path``, with criu.

        The container keeps running, unless ``stop``.  criu writes its logs to ``work_path``.
        ``options``, the runtime's own message, replaces ``stop`` and ``work_path``.

        :raises UnsupportedError: the host has no criu.  Some shims' status maps to
            ShimError.
        """
        request = make_message(
            api.CheckpointTaskRequest,
            id=self.id,
            path=str(path),
            options=options or checkpoint_options(path, stop=stop, work_path=work_path),
        )
        await self.shim.call("Checkpoint", request, timeout)

    async def update(
        self,
        resources: Mapping[str, object],
        *,
        annotations: Mapping[str, str] | None = None,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Change limits; ``resources`` is the ``linux.resources`` object of an OCI config."""
        request = make_message(
            api.UpdateTaskRequest,
            id=self.id,
            resources=json_value("LinuxResources", resources),
            annotations=annotations,
        )
        await self.shim.call("Update", request, timeout)

    async def resize(self, width: int, height: int, *, timeout: float = CALL_TIMEOUT) -> None:
        """Set the size of the process's terminal, in characters."""
        request = make_message(
            api.ResizePtyRequest, id=self.id, exec_id=self.exec_id, width=width, height=height
        )
        await self.shim.call("ResizePty", request, timeout)

    async def close_io(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Close the shim's end of stdin; the process reads EOF after every writer closed too."""
        request = make_message(api.CloseIORequest, id=self.id, exec_id=self.exec_id, stdin=True)
        await self.shim.call("CloseIO", request, timeout)
