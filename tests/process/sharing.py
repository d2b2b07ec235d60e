"""Containers that ask for a shared daemon: their bundles, starts, removal, and their daemon.

A container asks by an annotation of its config.json, or by the runtime options that ``start``
reads from its standard input.
"""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from shim.api.task_pb2 import (
    ConnectRequest,
    DeleteRequest,
    KillRequest,
    ShutdownRequest,
    WaitRequest,
)
from shim.names import SHARE
from tests.process.rig import Rig, wait_gone
from tests.process.test_pods import SANDBOX

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from shim.api.task_grpc import TaskStub

SLEEP = ("sleep", "1000")


def sharing(share: str = "namespace", pod: str = "") -> Callable[[dict[str, Any]], None]:
    """Return a change of config.json that asks for a shared daemon."""

    def change(config: dict[str, Any]) -> None:
        config["annotations"] = {SHARE: share, **({SANDBOX: pod} if pod else {})}

    return change


def shared(rig: Rig, id_: str, *args: str, share: str = "namespace", pod: str = "") -> Path:
    return rig.bundle(id_, *(args or SLEEP), change=sharing(share, pod))


async def launch(rig: Rig, bundle: Path, **fields: Any) -> tuple[TaskStub, int]:
    """Start and run a container; return its client and the pid of its daemon."""
    task = await rig.start(bundle)
    await rig.run(task, bundle, **fields)
    return task, await daemon_of(task)


async def daemon_of(task: TaskStub) -> int:
    return (await task.Connect(ConnectRequest(id="any"), timeout=5)).shim_pid


async def remove(task: TaskStub, id_: str) -> int:
    """Kill and delete a container as a manager does; return its exit status."""
    await task.Kill(KillRequest(id=id_, signal=9), timeout=5)
    await task.Wait(WaitRequest(id=id_), timeout=10)
    status = (await task.Delete(DeleteRequest(id=id_), timeout=15)).exit_status
    await task.Shutdown(ShutdownRequest(id=id_), timeout=5)
    return status


async def kill_daemons(rig: Rig) -> None:
    for pid in rig.daemons:
        os.kill(pid, signal.SIGKILL)
    await wait_gone(rig.daemons)


def packed(options: Any) -> bytes:
    """Return options as containerd writes them to the standard input of ``start``."""
    from google.protobuf.any_pb2 import Any as AnyMessage

    message = AnyMessage(type_url=options.DESCRIPTOR.full_name, value=options.SerializeToString())
    return message.SerializeToString()


async def attributes(rig: Rig, id_: str, wrap: tuple[str, ...] = ()) -> tuple[int, str]:
    """Launch with ``start`` in a wrapper; return the daemon's pid, and what its runtime has."""
    say = f'case "$*" in *create*) (umask; nice; ulimit -n; env) >{rig.root}/{id_}.said;; esac'
    runtime = rig.wrapper(f"runtime-{id_}", f'{say}\nexec runc "$@"')
    bundle = shared(rig, id_)
    done = await trio.to_thread.run_sync(
        partial(rig.run_shim, bundle, "-id", id_, "start", wrap=wrap)
    )
    assert done.returncode == 0, done.stderr
    rig.address = rig.answer(done.stdout)
    task = await rig.connect()
    await rig.run(task, bundle, options=rig.options(binary_name=runtime))
    return await daemon_of(task), (rig.root / f"{id_}.said").read_text()
