"""Shutdown: refused by doing nothing while containers are left, prompt and final otherwise.

``now`` makes no difference: the Go shim does not read it either, and a manager
that sends it kills and deletes first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.task_pb2 import (
    DeleteRequest,
    KillRequest,
    ShutdownRequest,
    StartRequest,
    StateRequest,
    WaitRequest,
)
from shim.linux.sockets import socket_path
from shim.ttrpc.client import ConnectionLostError
from tests.process.rig import Rig, alive, wait_gone
from tests.process.steps import wait_path

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub

pytestmark = pytest.mark.e2e


async def ended(rig: Rig) -> None:
    """Wait until the shim has ended, within a manager's timeout."""
    await wait_gone(rig.daemons, 5)
    assert not Path(socket_path(rig.address)).exists()


@pytest.mark.parametrize("now", [False, True])
async def test_with_a_container_left_in_any_state_nothing_happens(rig: Rig, now: bool) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    request = ShutdownRequest(id="c1", now=now)

    async def still(status: int) -> None:
        for _ in range(2):
            await task.Shutdown(request, timeout=5)
        state = await task.State(StateRequest(id="c1"), timeout=5)
        assert (state.status, alive(rig.daemons[0])) == (status, True)

    await task.Create(rig.create_request(bundle), timeout=20)
    await still(process_pb2.CREATED)
    await task.Start(StartRequest(id="c1"), timeout=10)
    await still(process_pb2.RUNNING)
    await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    await task.Wait(WaitRequest(id="c1"), timeout=10)
    await still(process_pb2.STOPPED)
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    await task.Shutdown(request, timeout=5)
    await ended(rig)


async def test_while_a_container_is_being_created_nothing_happens_either(rig: Rig) -> None:
    go = rig.root / "go"
    wrapper = rig.wrapper(
        "slow",
        f"""case " $* " in *" create "*)
touch {go}.seen
while [ ! -e {go} ]; do sleep 0.05; done;;
esac
exec runc "$@\"""",
    )
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    async with trio.open_nursery() as nursery:
        request = rig.create_request(bundle, options=rig.options(binary_name=wrapper))
        nursery.start_soon(create, task, request)
        await wait_path(Path(f"{go}.seen"))
        await task.Shutdown(ShutdownRequest(now=True), timeout=5)
        go.touch()
    await task.Start(StartRequest(id="c1"), timeout=10)


async def test_with_its_own_creation_under_way_it_answers_when_nothing_of_it_is_left(
    rig: Rig,
) -> None:
    """A client that has the answer deletes the bundle: nothing may come into being in it
    then.
    """
    seen = rig.root / "seen"
    wrapper = rig.wrapper(
        "slow",
        f"""case " $* " in *" create "*) echo $$ >{seen}.new; mv {seen}.new {seen}; sleep 1;; esac
exec runc "$@\"""",
    )
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    request = rig.create_request(bundle, options=rig.options(binary_name=wrapper))
    refusals = []

    async def refused() -> None:
        with pytest.raises(GRPCError) as caught:
            await task.Create(request, timeout=30)
        refusals.append(caught.value.status)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused)
        await wait_path(seen)
        await task.Shutdown(ShutdownRequest(id="c1"), timeout=5)
        assert not alive(int(seen.read_text()))
        assert not list(rig.runc_root.glob("*/c1"))
        assert not [path for path in bundle.glob("*.pid") if alive(int(path.read_text()))]
    assert refusals == [Status.UNAVAILABLE]
    await ended(rig)


async def create(task: TaskStub, request: object) -> None:
    await task.Create(request, timeout=30)  # type: ignore[arg-type]  # a create request


async def test_asked_by_many_at_once_it_ends_once_and_everybody_has_an_end(rig: Rig) -> None:
    task = await rig.start(rig.bundle("c1", "true"))
    others = [await rig.connect() for _ in range(3)]
    answers: list[Status] = []

    async def ask(one: TaskStub) -> None:
        try:
            await one.Shutdown(ShutdownRequest(now=True), timeout=5)
            answers.append(Status.OK)
        except ConnectionLostError:
            answers.append(Status.UNAVAILABLE)
        except GRPCError as exc:
            answers.append(exc.status)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for one in (task, *others):
                for _ in range(3):
                    nursery.start_soon(ask, one)
    assert len(answers) == 12
    assert Status.OK in answers
    assert set(answers) <= {Status.OK, Status.UNAVAILABLE}
    await ended(rig)
