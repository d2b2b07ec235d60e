"""Runs the runtime: one command at a time for whoever calls, any number side by side.

A command is bounded by its caller's deadline and by a limit of its own; past
either it is killed and waited for.  Its stderr is read while it runs, so that
it never blocks on a full pipe.

Source of the errors' wording: containerd-shim-runc-v2 process/init.go
("OCI runtime create failed"), which Docker and kubelets search for substrings.
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

    from shim.reaper import Child, Reaper
    from shim.runc.command import Runtime

# Seconds a runtime command may take whatever its caller says.
LIMIT = 120.0
# Seconds between SIGKILL and giving a command up for lost.
_KILL_LIMIT = 5.0
# Seconds an ``exec`` may go on after its caller gave up: its process, which the
# command's death would end, may run already.
_EXEC_GRACE = 5.0
# Seconds a command's output may wait to be read.  Few run longer, and few of
# those say more than a pipe holds.
_READ_AFTER = 0.05
# Bytes read of a command's log: its last lines hold the error.
_LOG_TAIL = 1 << 20
# Characters of the runtime's message that are passed on.
_MESSAGE = 4096

# Runtimes tell these apart only in prose.  Source: containerd-shim-runc-v2,
# process/utils.go checkKillError, and crun's and runsc's own wording.
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

# The verbs that end what they name, whoever made it: ``kill`` and ``delete``, whose
# arguments end with the id, and the signal after it.
_ENDING = ("kill", "delete")

# The verbs whose "not found" can only mean the container or its process.
_ABOUT_ONE = ("start", "kill", "delete", "pause", "resume")


class RuntimeFailedError(ShimError):
    """The runtime said no.  The text is the runtime's own."""


class RuntimeMissingError(ShimError):
    """The runtime is not there (any more).  That says nothing about the container."""

    status = Status.FAILED_PRECONDITION


class ForeignContainerError(NotFoundError):
    """The runtime's container of this id belongs to another bundle, so to another manager."""


def _environ() -> dict[str, str]:
    """Return our environment without systemd's NOTIFY_SOCKET.

    A manager that systemd runs has it.  With it runc mounts the socket into the
    container, and its ``start`` waits until the container says it is ready.
    """
    return {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}


@dataclass(frozen=True)
class Runc:
    """A runtime and the reaper that runs it.

    ``limit`` is in seconds.  ``environ`` is the environment of every command, and
    ``directory`` its working directory: the container's bundle, where wrappers
    of runtimes, and hooks, look for config.json.  Without one it is ours.
    """

    runtime: Runtime
    reaper: Reaper
    limit: float = LIMIT
    environ: Mapping[str, str] = field(default_factory=_environ)
    directory: str | None = None

    async def run(self, verb: str, *args: str, stdin: bytes = b"") -> str:
        """Run a command whose output is its own, and return its stdout.

        ``stdin`` is at most 1 MiB, a pipe's size.

        :raises RuntimeFailedError: it failed, in its own words.
        :raises NotFoundError: the container or process is gone.
        :raises ForeignContainerError: the command would end a container that is
            not of the bundle ``directory``.
        :raises RuntimeMissingError: there is no such runtime.
        :raises TimedOutError: it took longer than the limit, and was killed.
        """
        if verb in _ENDING and self.directory is not None:
            self._check_bundle(args[-1] if verb == "delete" else args[-2], self.directory)
        out, err = Output(), Output()
        source = -1
        try:
            source = _memory(stdin) if stdin else -1
            fds = {0: source, 1: out.writer, 2: err.writer}
            child = self._spawn(verb, self.runtime.argv(verb, *args), fds)
            out.started()
            err.started()
            exit_ = await self._finish(verb, child, out, err)
            if exit_:
                text = err.text()
                raise _failure(verb, exit_, reason_of(text))
            return out.text()
        finally:
            if source >= 0:
                os.close(source)
            out.close()
            err.close()

    async def create_process(
        self,
        verb: str,
        *args: str,
        log: str,
        fds: Mapping[int, int] | None,
        started: Callable[[], None] = lambda: None,
        before_kill: Callable[[Sequence[int]], None] = lambda pids: None,
    ) -> None:
        """Run a command that leaves a process behind, whose stdio is ``fds``.

        The errors are in ``log``, which is written anew.  ``started`` is called as soon
        as the command runs, and ``before_kill`` with the pids of the command and of its
        descendants before they are killed.

        :raises RuntimeFailedError, TimedOutError: as :meth:`run`.
        :raises RuntimeMissingError: there is no such runtime.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(log)  # noqa: PTH108 - a plain string all along
        child = self._spawn(verb, self.runtime.argv(verb, *args, log=log), fds)
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
                f"container {id_} of {bundle} does not exist; the runtime has one of {other}"
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
        try:
            with trio.fail_after(self.limit):
                with trio.move_on_after(_READ_AFTER if outputs else math.inf):
                    return (await child.wait()).status
                async with background(*(output.follow for output in outputs)):
                    return (await child.wait()).status
        except trio.TooSlowError:
            raise TimedOutError(
                f"{self.runtime.binary} {verb} did not return within {self.limit:g} s "
                "and was killed"
            ) from None
        finally:
            if child.exit is None and grace:
                with trio.move_on_after(grace, shield=True):
                    await child.wait()
            if child.exit is None:
                with trio.move_on_after(_KILL_LIMIT, shield=True):
                    # With it the hook it waits for, and the process it was making.
                    with stopped_tree(child.pid) as tree:
                        before_kill(tree.pids)
                        tree.kill()
                    await child.wait()


def _memory(data: bytes) -> int:
    """Return an fd that reads as ``data``."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _failure(verb: str, status: int, message: str) -> ShimError:
    message = message[-_MESSAGE:]
    text = f"OCI runtime {verb} failed: {message or f'exit status {status}, and nothing said'}"
    gone = verb in _ABOUT_ONE and any(sentence in message.lower() for sentence in _GONE)
    return NotFoundError(text) if gone else RuntimeFailedError(text)
