"""Containers without a manager: run one from a bundle, exec into one, remove one.

The steps are those of containerd: start a shim, Create, Start, Wait, Delete,
Shutdown, the shim's own ``delete``; the directory is removed last.  A step that
fails or is cancelled undoes the steps before it, within ``CLEANUP`` seconds.

Source: containerd core/runtime/v2 (shim.go, delete) for the order.
"""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from google.protobuf.any_pb2 import Any as AnyMessage

from shim import names
from shim.api.options_pb2 import Options
from shim.errors import ShimError, WrongStateError
from shim.linux.modes import write_file
from shim.linux.sockets import can_connect
from shim.scope import background
from shim.text import printable
from shimctl.attach.relay import open_pipes
from shimctl.attach.session import attach, open_signals
from shimctl.attach.terminal import check_input
from shimctl.bundles import process_for as process_for
from shimctl.client import connect
from shimctl.ending import end
from shimctl.execfifos import open_directory
from shimctl.launching import DEFAULT_RUNTIME, find_runtime, launch, open_log
from shimctl.options import make_message
from shimctl.standalone import detached, logger, runlock, workdir
from shimctl.standalone.autoremoval import start_monitor
from shimctl.standalone.detached import Detached, open_detached
from shimctl.standalone.execs import new_exec_id
from shimctl.standalone.removal import dispose as dispose
from shimctl.standalone.runlock import Part
from shimctl.standalone.settings import Settings, mounts_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from shim.api.mount_pb2 import Mount
    from shimctl.client import Shim, Task
    from shimctl.launching import Log
    from shimctl.values import Exited

CLEANUP = 20  # s to undo all steps after a failure


@dataclass(frozen=True, slots=True)
class Run:
    """The arguments of ``shimctl run``."""

    bundle: Path
    container: str
    namespace: str = "default"
    runtime: str = DEFAULT_RUNTIME
    interactive: bool = False  # detached only: keep a stdin for clients
    terminal: bool | None = None  # None: as in the bundle if attached, else without
    log: Path | None = None  # detached only: the file for the output, in place of our log
    log_limit: int = logger.LIMIT  # bytes of each of the two files of our log
    policy: str = ""  # for output without a reader; empty for the default
    detach_keys: bytes = b""  # the keys that detach a terminal
    debug: bool = False
    binary: str = ""  # the OCI runtime; empty for the shim's default, runc
    checkpoint: Path | None = None  # an image to restore
    work_path: Path | None = None  # the directory of criu's log for a restore
    remove: bool = False  # at its end, though it is detached
    events: Path | None = None  # the socket for events, in place of the default
    config: dict[str, Any] | None = None  # of an image
    rootfs: Callable[[Path], Sequence[Mount]] | None = None


def prepare(wanted: Run, *, attached: bool) -> Path:
    """Create the working directory for ``wanted``.

    A detached container gets a terminal only if ``wanted.terminal`` is true.

    :raises InvalidError: it is interactive, with a terminal, and our stdin is no terminal;
        nothing was created.
    """
    binary = find_runtime(wanted.runtime)
    config = wanted.config or workdir.config_of(wanted.bundle.absolute())
    terminal = attached and config["process"].get("terminal", False)
    terminal = terminal if wanted.terminal is None else wanted.terminal
    check_input(stdin=attached and wanted.interactive, terminal=terminal)
    config["process"] = config["process"] | {"terminal": terminal}
    if policy := _policy(wanted, attached=attached, terminal=terminal):
        config["annotations"] = (config.get("annotations") or {}) | {names.OUTPUT_POLICY: policy}
    work = workdir.make(config, wanted.namespace, wanted.container)
    write_file(work / "shim-binary-path", binary)
    return work


def _policy(wanted: Run, *, attached: bool, terminal: bool) -> str:
    """Choose the output policy; empty is the shim's default.

    A container that may run without a client for long must not block on output.
    """
    if attached:
        usual = "spool" if terminal and wanted.detach_keys else ""
    else:
        stdio = Detached(wanted.interactive, terminal, wanted.log, policy=wanted.policy)
        usual = "spool" if stdio.through_fifos else ""
    return wanted.policy or usual


def _keep(wanted: Run, work: Path, rootfs: Sequence[Mount], *, attached: bool) -> Settings:
    """Write the settings with which the container can be run again; return them.

    An attached one then runs without its client.
    """
    terminal = bool(workdir.read_config(work)["process"].get("terminal"))
    kept = Settings(
        runtime=find_runtime(wanted.runtime),
        binary=wanted.binary,
        interactive=terminal if attached else wanted.interactive,
        terminal=terminal,
        log=str(wanted.log.absolute()) if wanted.log else "",
        log_limit=wanted.log_limit,
        policy=_policy(wanted, attached=True, terminal=terminal) if attached else wanted.policy,
        debug=wanted.debug,
        remove=wanted.remove,
        rootfs=mounts_of(rootfs),
    )
    kept.write(work)
    return kept


async def run_attached(wanted: Run) -> Exited | None:
    """Run a container with our stdin, stdout and stderr; then remove it completely.

    Other clients can attach to it meanwhile.  Returns None if the detach keys were
    typed: the container runs on.
    """
    exited, left = None, False
    async with open_signals() as signals:
        work = prepare(wanted, attached=True)
        terminal = bool(workdir.read_config(work)["process"].get("terminal"))
        # As docker: without -i a terminal gets no input from a pipe or a file.
        stdin = not terminal or wanted.interactive or os.isatty(0)
        with runlock.held(work, Part.FOREGROUND):
            try:
                rootfs = wanted.rootfs(work) if wanted.rootfs else ()
                kept = _keep(wanted, work, rootfs, attached=True)
                async with _launched(
                    work, wanted.container, wanted.namespace, kept, _events_of(wanted)
                ) as shim:
                    with open_pipes(work, stdin=True, terminal=terminal) as pipes:
                        await shim.create(
                            wanted.container,
                            str(work),
                            stdio=pipes.stdio,
                            rootfs=rootfs,
                            options=_options(wanted.binary, wanted.work_path),
                        )
                        task = shim.task(wanted.container)
                        await task.start()
                        exited = await attach(
                            *(task, pipes, signals),
                            keys=wanted.detach_keys,
                            place=work,
                            stdin=stdin,
                        )
                        pipes.keep = left = exited is None
                        if left and kept.remove:
                            await _hand_over(work, task, wanted.namespace, kept.runs)
            finally:
                if not left:
                    with trio.move_on_after(CLEANUP, shield=True):
                        await dispose(work, wanted.container, wanted.namespace)
    return exited


async def _hand_over(work: Path, task: Task, namespace: str, run: int) -> None:
    """Start the monitor of a container that its client leaves; it may have exited since."""
    try:
        await start_monitor(work, task, namespace, run)
    except WrongStateError:
        await dispose(work, task.id, namespace)


def _events_of(wanted: Run) -> str | Path | None:
    if wanted.events is None and not can_connect(f"unix://{workdir.events_socket()}"):
        # Some shims delay their exit for seconds while they cannot deliver events.
        return ""
    return wanted.events


async def run_detached(wanted: Run, *, start: bool = True) -> int:
    """Run a container in the background, with its output in a log or fifos; return its pid.

    Without ``start`` it is only created, or ready to be restored, in which case it has
    no pid yet.
    """
    async with open_signals():
        work = prepare(wanted, attached=False)
        try:
            with runlock.held(work, Part.CHANGE):
                rootfs = wanted.rootfs(work) if wanted.rootfs else ()
                kept = _keep(wanted, work, rootfs, attached=False)
                return await start_detached(
                    *(work, wanted.container, wanted.namespace, kept),
                    start=start,
                    events=wanted.events,
                    checkpoint=wanted.checkpoint,
                    work_path=wanted.work_path,
                )
        except BaseException:
            with trio.move_on_after(CLEANUP, shield=True):
                await dispose(work, wanted.container, wanted.namespace)
            raise


async def start_detached(
    work: Path,
    container: str,
    namespace: str,
    kept: Settings,
    *,
    start: bool = True,
    events: Path | None = None,
    checkpoint: Path | None = None,
    work_path: Path | None = None,
) -> int:
    """Launch a shim for the container in ``work`` and run it there; return its pid.

    The caller holds the lock of the change, and undoes the steps after a failure.
    ``checkpoint`` is an image to restore, ``work_path`` the directory for criu's log.
    """
    wanted = Detached(
        interactive=kept.interactive,
        terminal=kept.terminal,
        log=Path(kept.log) if kept.log else None,
        limit=kept.log_limit,
        policy=kept.policy,
    )
    async with _launched(work, container, namespace, kept, events) as shim:
        with open_detached(work, wanted) as stdio:
            pid = await shim.create(
                container,
                str(work),
                stdio=stdio,
                rootfs=[mount.message() for mount in kept.rootfs],
                checkpoint=str(checkpoint.absolute()) if checkpoint else "",
                options=_options(kept.binary, work_path),
            )
            task = shim.task(container)
            if stdio.terminal:
                with suppress(ShimError):  # some shims cannot resize before Start
                    await task.resize(*detached.SIZE)
            if kept.remove:
                await start_monitor(work, task, namespace, kept.runs)
            return await task.start() if start else pid


def _options(binary: str, work_path: Path | None) -> AnyMessage | None:
    if not binary and not work_path:
        return None
    options = make_message(
        Options,
        binary_name=binary,
        criu_work_path=str(work_path.absolute()) if work_path else "",
    )
    return AnyMessage(type_url=Options.DESCRIPTOR.full_name, value=options.SerializeToString())


@asynccontextmanager
async def _launched(
    work: Path, container: str, namespace: str, kept: Settings, events: str | Path | None
) -> AsyncIterator[Shim]:
    """Launch the shim and connect to it, and read its log, for the block."""
    launched = await launch(
        work,
        container,
        namespace=namespace,
        runtime=kept.runtime,
        debug=kept.debug,
        events=events,
    )
    with open_log(work) as log:
        async with (
            background(partial(_follow, log, kept.debug)),
            connect(launched.address, namespace=namespace) as shim,
        ):
            yield shim


async def _follow(log: Log, show: bool) -> None:
    while True:
        await trio.lowlevel.wait_readable(log.fd)
        text = log.read()
        if show:
            sys.stderr.write("\n".join(map(printable, text.split("\n"))))
            sys.stderr.flush()


async def exec_attached(
    task: Task, process: Mapping[str, object], *, stdin: bool, terminal: bool
) -> Exited:
    """Run ``process`` as an exec, with our stdin if ``stdin`` is set, and delete it.

    :raises InvalidError: ``terminal`` and ``stdin`` are set, and our stdin is no terminal.
    """
    check_input(stdin=stdin, terminal=terminal)
    name = new_exec_id()
    async with open_signals() as signals:
        with (
            open_directory() as directory,
            open_pipes(directory, stdin=stdin, terminal=terminal) as pipes,
        ):
            added = await task.exec(name, process, stdio=pipes.stdio)
            try:
                await added.start()
                exited = await attach(added, pipes, signals)
            except BaseException:
                with trio.move_on_after(CLEANUP, shield=True), suppress(ShimError):
                    await end(added)
                raise
    assert exited is not None, "an exec has no detach keys"
    return exited
