"""Pods: which shim a container joins, during other changes, too, and when the shim may end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from shim.api import process_pb2
from shim.api.bootstrap_pb2 import BootstrapParams, BootstrapResult
from shim.api.task_pb2 import (
    ConnectRequest,
    DeleteRequest,
    KillRequest,
    ShutdownRequest,
    StateRequest,
    WaitRequest,
)
from shim.container.containers import JOIN_LIMIT
from shim.errors import UnavailableError
from shim.linux.sockets import can_connect, socket_address, socket_path
from shimctl import list_shims
from tests.e2e.leftovers import processes
from tests.e2e.waiting import PATIENCE
from tests.process.rig import NAMESPACE, SHIM, Rig, wait_gone
from tests.process.steps import kill_daemon, wait_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shim.api.task_grpc import TaskStub

SANDBOX = "io.kubernetes.cri.sandbox-id"
STARTERS = 20
LEGACY = b""


def pod(config: dict[str, Any]) -> None:
    config["annotations"] = {SANDBOX: "pod1"}


def address_of(rig: Rig, group: str = "pod1") -> str:
    return socket_address(str(rig.root / "manager"), NAMESPACE, group)


def params(id_: str) -> bytes:
    return BootstrapParams(instance_id=id_, namespace=NAMESPACE).SerializeToString()


def daemons(rig: Rig) -> list[int]:
    """Find this rig's shims by looking at the machine, not by asking one."""
    mark = f"-address {rig.root}/manager"
    found = processes(str(rig.root), rig.root.name)
    return [pid for pid, line in found if mark in line and line.rstrip().endswith("manager")]


async def race(rig: Rig, bundles: list[Path]) -> set[str]:
    """Start a shim in each bundle at the same time; return the addresses answered."""
    answers = []

    async def one(bundle: Path, stdin: bytes) -> None:
        flags = ("-id", bundle.name, "start")
        done = await trio.to_thread.run_sync(
            lambda: rig.run_shim(bundle, *flags, stdin=stdin, timeout=100)
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        if stdin:
            assert BootstrapResult.FromString(done.stdout).version == 3
        answers.append(rig.answer(done.stdout))

    async with trio.open_nursery() as nursery:
        for number, bundle in enumerate(bundles):
            nursery.start_soon(one, bundle, params(bundle.name) if number % 2 else LEGACY)
    assert len(answers) == len(bundles)
    return set(answers)


async def test_of_many_starters_at_once_all_get_the_one_shim(rig: Rig) -> None:
    """Round by round: nothing there, a shim that was killed, one that has just been shut down."""
    bundles = [rig.bundle(f"c{i}", "true", change=pod) for i in range(STARTERS)]
    for end in ("kill", "shut down", "nothing"):
        assert await race(rig, bundles) == {address_of(rig)}
        rig.address = address_of(rig)
        rig.daemons.clear()
        task = await rig.connect()
        assert daemons(rig) == rig.daemons
        for bundle in bundles[:2]:
            await rig.run(task, bundle)
            await task.Wait(WaitRequest(id=bundle.name), timeout=20)
            await task.Delete(DeleteRequest(id=bundle.name), timeout=20)
        if end == "kill":
            await kill_daemon(rig)
            assert Path(socket_path(rig.address)).exists()
        elif end == "shut down":
            await shut_down(task)
            await wait_gone(rig.daemons)
            assert not Path(socket_path(rig.address)).exists()


async def shut_down(task: TaskStub, **fields: Any) -> None:
    await task.Shutdown(ShutdownRequest(**fields), timeout=5)


@pytest.mark.parametrize("now", [False, True])
async def test_a_shim_with_containers_does_not_shut_down(rig: Rig, now: bool) -> None:
    bundles = [rig.bundle(id_, "sleep", "1000", change=pod) for id_ in ("c1", "c2")]
    for bundle in bundles:
        task = await rig.start(bundle)
    created = [await rig.run(task, bundle) for bundle in bundles]
    await shut_down(task, id="c1", now=now)
    for id_, made in zip(("c1", "c2"), created, strict=True):
        await task.Kill(KillRequest(id=id_, signal=9), timeout=5)
        assert (await task.Wait(WaitRequest(id=id_), timeout=10)).exit_status == 137
        # One that ended and was not deleted counts: its exit is still to be read.
        await shut_down(task, id=id_, now=now)
        assert (await task.State(StateRequest(id=id_), timeout=5)).pid == made.pid
        await task.Delete(DeleteRequest(id=id_), timeout=15)
    await shut_down(task, id="c1", now=now)
    await wait_gone(rig.daemons, 5)
    assert not Path(socket_path(rig.address)).exists()


async def test_a_shim_whose_first_container_is_being_created_does_not_shut_down(rig: Rig) -> None:
    go = rig.root / "go"
    slow = f'case "$*" in *create*) while [ ! -e {go} ]; do sleep 0.01; done;; esac'
    options = rig.options(binary_name=rig.wrapper("slow", f'{slow}\nexec runc "$@"'))
    bundle = rig.bundle("c1", "sleep", "1000", change=pod)
    task = await rig.start(bundle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: rig.run(task, bundle, options=options))
        await wait_path(bundle / "options.json")
        for _ in range(3):
            await shut_down(task)
        go.touch()
    state = await task.State(StateRequest(id="c1"), timeout=5)
    assert state.status == process_pb2.RUNNING


async def test_shutting_down_twice_is_one_shutdown(rig: Rig) -> None:
    task = await rig.start(rig.bundle("c1", "true"))
    other = await rig.connect()
    await shut_down(task)
    with suppress(UnavailableError):  # for managers the end of the connection means the same
        await shut_down(other)
    await wait_gone(rig.daemons, 5)


async def test_an_empty_shim_that_a_start_has_joined_waits_for_its_create(rig: Rig) -> None:
    task = await rig.start(rig.bundle("c1", "true", change=pod))
    bundle = rig.bundle("c2", "true", change=pod)
    await rig.start(bundle, params("c2"))
    await shut_down(task)
    await rig.run(task, bundle)
    assert daemons(rig) == rig.daemons


async def test_an_empty_shim_that_is_only_looked_at_ends_at_once(rig: Rig) -> None:
    task = await rig.start(rig.bundle("c1", "true", change=pod))
    assert rig.address in {found.address for found in await list_shims()}
    await task.Connect(ConnectRequest(), timeout=5)
    await shut_down(task)
    await wait_gone(rig.daemons, JOIN_LIMIT - 1)


@contextmanager
def full_pipe() -> Iterator[int]:
    """Yield the end of a pipe in which a writer waits."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(1 << 16))
        os.set_blocking(writer, True)
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


async def test_a_shim_whose_start_is_killed_keeps_the_container_of_another_start(rig: Rig) -> None:
    """The first caller of ``start`` has not had the address, which a second one was given."""
    first = rig.bundle("pod1", "sleep", "1000", change=pod)
    second = rig.bundle("c2", "sleep", "1000", change=pod)
    argv = [*SHIM, "-namespace", NAMESPACE, "-address", str(rig.root / "manager")]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with full_pipe() as stdout:
        starter = subprocess.Popen(  # noqa: ASYNC220 - it waits for nothing
            [*argv, "-id", "pod1", "start"],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            cwd=first,
            env=environ,
        )
        try:
            with trio.fail_after(20 * PATIENCE):
                while not can_connect(address_of(rig)):
                    await trio.sleep(0.01)
            task = await rig.start(second)
            await rig.run(task, second)
            caller = Path(f"/proc/{rig.daemons[0]}/fd/4")  # the connection to the starter
            assert caller.readlink()
        finally:
            starter.kill()
            starter.wait()
    # The daemon has seen the end of the starter when it has closed the connection.
    with trio.fail_after(10 * PATIENCE):
        while caller.is_symlink():
            await trio.sleep(0.01)
    assert (await task.State(StateRequest(id="c2"), timeout=5)).status == process_pb2.RUNNING
    another = await rig.connect()
    assert (await another.State(StateRequest(id="c2"), timeout=5)).status == process_pb2.RUNNING


# A foreign shim that accepts the connection and ends before it answers a call.  argv: its
# address, how many connections
# it takes; the last one ends it.
DYING = """
import os, socket, sys
path, connections = sys.argv[1], int(sys.argv[2])
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(128)
print("ready", flush=True)
for _ in range(connections):
    listener.accept()[0].close()
"""


@contextmanager
def dying_shim(address: str, connections: int) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-c", DYING, socket_path(address), str(connections)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("connections", [1, 2, 4])
@pytest.mark.parametrize("modern", [False, True])
async def test_a_shim_that_ends_while_it_is_joined_is_succeeded(
    rig: Rig, connections: int, modern: bool
) -> None:
    bundle = rig.bundle("c1", "true", change=pod)
    with dying_shim(address_of(rig), connections):
        stdin = params("c1") if modern else LEGACY
        task = await rig.start(bundle, stdin)
        assert rig.address == address_of(rig)
        assert daemons(rig) == rig.daemons
        await rig.run(task, bundle)


async def test_a_shim_that_hangs_is_named_to_who_must_know_what_it_speaks(rig: Rig) -> None:
    bundles = [rig.bundle(f"c{i}", "true", change=pod) for i in range(3)]
    task = await rig.start(bundles[0])
    os.kill(rig.daemons[0], signal.SIGSTOP)
    try:
        before = time.monotonic()
        done = rig.run_shim(bundles[1], "-id", "c1", "start", stdin=params("c1"))
        assert time.monotonic() - before < 10 + 5 * PATIENCE
        assert done.returncode == 1
        assert address_of(rig).encode() in done.stderr
        assert done.stderr.count(b"\n") == 1
        # A plain answer has only the address.
        done = rig.run_shim(bundles[2], "-id", "c2", "start")
        assert done.stdout == address_of(rig).encode()
    finally:
        os.kill(rig.daemons[0], signal.SIGCONT)
    # The process that bound the socket serves the pod: to replace it would make two shims of
    # one.
    assert daemons(rig) == rig.daemons
    await task.Connect(ConnectRequest(), timeout=5)
    await rig.connect()
    assert len(rig.daemons) == 1
