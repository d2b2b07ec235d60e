"""Run runtime commands; several may run at once.

A command runs until its caller's deadline or the runtime limit, whichever comes first;
then it is killed and reaped.  Its stderr is read while it runs, so that it never blocks
on a full pipe.

Source of the errors' wording: containerd-shim-runc-v2 process/init.go
("OCI runtime create failed"); Docker and kubelets search the texts for substrings.
"""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio
from grpclib.const import Status

from shim.errors import NotFoundError, ShimError, TimedOutError
from shim.linux.files import read_tail
from shim.linux.tree import stopped_tree
from shim.runc.command import reason_of
from shim.runc.output import Output
from shim.runc.state import foreign_bundle
from shim.scope import background

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from shim.child import Child
    from shim.reaper import Reaper
    from shim.runc.command import Runtime

# Seconds that a runtime command may take, also if its caller's deadline is later.
LIMIT = 120.0
# Seconds to wait for a command's exit after SIGKILL.
_KILL_LIMIT = 5.0
# Seconds that an ``exec`` may continue after its caller's deadline: its process may run
# already, and killing the command would kill it.
_EXEC_GRACE = 5.0
# Seconds until the first read of a command's output.  Few commands run longer, and few of
# these write more than a pipe holds.
_READ_AFTER = 0.05
# Bytes to read from the end of a command's log: the last lines have the error.
_LOG_TAIL = 1 << 20
# Characters of the runtime's message that are passed on.
_MESSAGE = 4096

# Parts of messages which mean that the container or its process does not exist: runtimes
# have no error codes.  Source: containerd-shim-runc-v2, process/utils.go checkKillError,
# and the messages of crun and runsc.
_GONE = (
    "process already finished",
    "container not running",
    "no such process",
    "does not exist",
    "not found",
    "is not running",
    "/status`: no such file or directory",  # crun
    "cannot open directory",  # crun
)

# The commands that end the container with the id, even if another manager created it.
# Their last arguments are the id, and for ``kill`` the signal after it.
_ENDING = ("kill", "delete")

# For these commands, "not found" can only mean the container or its process.
_ABOUT_ONE = ("start", "kill", "delete", "pause", "resume")


class RuntimeFailedError(ShimError):
    """A runtime command failed.  The text has the runtime's error message."""


class RuntimeMissingError(ShimError):
    """The runtime's executable does not exist.  The container may still exist."""

    status = Status.FAILED_PRECONDITION


class ForeignContainerError(NotFoundError):
    """The runtime's container with this id has another bundle, so another manager owns it."""


def _environ() -> dict[str, str]:
    """Return our environment without systemd's NOTIFY_SOCKET.

    A manager that systemd runs has this variable.  With it, runc mounts the socket into
    the container, and ``runc start`` waits for the container's READY message.
    """
    return {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}


def environ_in(directory: str, first: str) -> dict[str, str]:
    """Return the environment of the runtime commands of the container in ``directory``.

    A manager's shell sets PWD to the bundle where it runs ``start``.  In the environment
    of a daemon it is ``first``, the bundle of the first container.
    """
    environ = _environ()
    if environ.get("PWD") == first:
        environ["PWD"] = directory
    return environ


@dataclass(frozen=True)
class Runc:
    """A runtime and the reaper that runs it.

    ``limit`` is in seconds.  ``environ`` is the environment of every command, and
    ``directory`` its working directory: the container's bundle, where hooks and wrappers
    of runtimes look for config.json.  None keeps ours.
    """

    runtime: Runtime
    reaper: Reaper
    limit: float = LIMIT
    environ: Mapping[str, str] = field(default_factory=_environ)
    directory: str | None = None

    async def run(self, verb: str, *args: str, stdin: bytes = b"") -> str:
        """Run a command that creates no process, and return its stdout.

        ``stdin`` is at most 1 MiB.

        :raises RuntimeFailedError: it failed; the text has the runtime's message.
        :raises NotFoundError: the container or process does not exist.
        :raises ForeignContainerError: the command would end a container of another
            bundle than ``directory``.
        :raises RuntimeMissingError: there is no such runtime.
        :raises TimedOutError: it took longer than the limit, and was killed.
        """
        if verb in _ENDING and self.directory is not None:
            self._check_bundle(args[-1] if verb == "delete" else args[-2], self.directory)
        with contextlib.ExitStack() as closing:
            out, err = (closing.enter_context(contextlib.closing(Output())) for _ in range(2))
            source = -1
            if stdin:
                source = _memory(stdin)
                closing.callback(os.close, source)
            fds = {0: source, 1: out.writer, 2: err.writer}
            child = self._spawn(verb, self.runtime.argv(verb, *args), fds)
            out.started()
            err.started()
            exit_ = await self._finish(verb, child, out, err)
            if exit_:
                text = err.text()
                raise _failure(verb, exit_, reason_of(text))
            return out.text()

    async def create_process(
        self,
        verb: str,
        *args: str,
        log: str,
        fds: Mapping[int, int] | None,
        before: Callable[[], None] = lambda: None,
        started: Callable[[], None] = lambda: None,
        before_kill: Callable[[Sequence[int]], None] = lambda pids: None,
    ) -> None:
        """Run a command that creates a container's process with ``fds`` as its stdio.

        The command writes its errors to the file ``log``, which is replaced.  ``before`` is
        called directly before the command is started, ``started`` as soon as it runs.
        ``before_kill`` is called with the pids of the command and of its descendants before
        they are killed at the limit.

        :raises RuntimeFailedError, TimedOutError: as :meth:`run`.
        :raises RuntimeMissingError: there is no such runtime.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(log)  # noqa: PTH108 - a plain string all along
        argv = self.runtime.argv(verb, *args, log=log)
        before()
        child = self._spawn(verb, argv, fds)
        started()
        grace = _EXEC_GRACE if verb == "exec" else 0
        exit_ = await self._finish(verb, child, grace=grace, before_kill=before_kill)
        if exit_:
            text = ""
            with contextlib.suppress(OSError):
                text = read_tail(log, _LOG_TAIL).decode(errors="replace")
            raise _failure(verb, exit_, reason_of(text))

    def _check_bundle(self, id_: str, bundle: str) -> None:
        if other := foreign_bundle(self.runtime.root, id_, bundle):
            raise ForeignContainerError(
                f"container {id_} of {bundle} does not exist: the runtime's container "
                f"{id_} has the bundle {other}"
            )

    def _spawn(self, verb: str, argv: list[str], fds: Mapping[int, int] | None) -> Child:
        try:
            return self.reaper.spawn(argv, env=self.environ, fds=fds, directory=self.directory)
        except NotFoundError as exc:
            raise RuntimeMissingError(f"OCI runtime {verb} failed: {exc}") from None

    async def _finish(
        self,
        verb: str,
        child: Child,
        *outputs: Output,
        grace: float = 0,
        before_kill: Callable[[Sequence[int]], None] = lambda pids: None,
    ) -> int:
        self.reaper.commands += 1
        try:
            with trio.fail_after(self.limit):
                with trio.move_on_after(_READ_AFTER if outputs else math.inf):
                    return (await child.wait()).exit_status
                async with background(*(output.follow for output in outputs)):
                    return (await child.wait()).exit_status
        except trio.TooSlowError:
            raise TimedOutError(
                f"{self.runtime.binary} {verb} did not return within {self.limit:g} s "
                "and was killed"
            ) from None
        finally:
            self.reaper.commands -= 1
            if child.exit is None and grace:
                with trio.move_on_after(grace, shield=True):
                    await child.wait()
            if child.exit is None:
                with trio.move_on_after(_KILL_LIMIT, shield=True):
                    # Including the hook that it waits for, and the process it creates.
                    with stopped_tree(child.pid) as tree:
                        before_kill(tree.pids)
                        tree.kill()
                    await child.wait()


def _memory(data: bytes) -> int:
    """Return an fd from which ``data`` can be read."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        os.close(fd)
        raise
    return fd


def _failure(verb: str, status: int, message: str) -> ShimError:
    message = message[-_MESSAGE:]
    text = f"OCI runtime {verb} failed: {message or f'exit status {status} without a message'}"
    gone = verb in _ABOUT_ONE and any(sentence in message.lower() for sentence in _GONE)
    return NotFoundError(text) if gone else RuntimeFailedError(text)
