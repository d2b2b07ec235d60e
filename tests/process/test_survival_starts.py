"""A daemon is killed while it has no container: before the Create, or in its Shutdown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.task_pb2 import ConnectRequest, ShutdownRequest
from shim.linux.sockets import socket_path
from tests.e2e.waiting import PATIENCE
from tests.process.rig import wait_gone
from tests.process.sharing import shared
from tests.process.steps import lose_call, wait_path
from tests.process.survival import daemon_of
from tests.process.test_lost_callers import nothing_is_left
from tests.process.test_pods import pod
from tests.process.test_upgrade import move

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub
    from tests.process.builds import Build
    from tests.process.rig import Rig
    from tests.process.survival import Start, Survivor

pytestmark = pytest.mark.cold  # the fork server is the test's own


async def remove(shim: Survivor, id_: str) -> None:
    """End and delete the container, and ask the daemon to end, as managers do."""
    await shim.kill(id_)
    await shim.wait(id_)
    await shim.delete(id_)
    await shim.task.Shutdown(ShutdownRequest(id=id_), timeout=5)


async def test_a_shared_daemon_gets_no_container_more_than_its_number(
    rig: Rig, survivors: Start
) -> None:
    first = shared(rig, "c1", share="2")
    shim = await survivors(first)
    address = rig.address
    await shim.run(first)
    await survivors(shared(rig, "c2", share="2"))
    assert rig.address == address
    await shim.replace()
    await survivors(shared(rig, "c3", share="2"))
    assert rig.address != address
    await shim.run(rig.root / "c2")
    await remove(shim, "c1")
    await shim.replace()
    await survivors(shared(rig, "c4", share="2"))
    assert rig.address == address  # the place of c1 is free


async def test_an_interrupted_create_has_its_place(rig: Rig, survivors: Start) -> None:
    first, second = (shared(rig, id_, share="2") for id_ in ("c1", "c2"))
    mark, go = rig.root / "mark", rig.root / "go"
    wait = f"touch {mark}; while [ ! -e {go} ]; do sleep 0.02; done"
    wrapper = rig.wrapper("slow", f'case " $* " in *" delete "*) {wait};; esac\nexec runc "$@"')
    shim = await survivors(first)
    address = rig.address
    async with trio.open_nursery() as nursery:

        async def create() -> None:
            await shim.create(first, options=rig.options(binary_name=stuck))

        stuck = rig.wrapper(
            "stuck",
            f"""case " $* " in *" create "*)
if [ ! -e {rig.root}/began ]; then touch {rig.root}/began; exec sleep 1000; fi;; esac
exec {wrapper} "$@\"""",
        )
        nursery.start_soon(create)
        await wait_path(rig.root / "began")
        await survivors(second)
        assert rig.address == address
        await shim.replace()
        await wait_path(mark)  # it is being undone
        await survivors(shared(rig, "c3", share="2"))
        assert rig.address != address
        go.touch()


@pytest.mark.parametrize("share", ["namespace", ""])
async def test_a_daemon_without_a_container_waits_for_the_create(
    rig: Rig, survivors: Start, share: str
) -> None:
    def bundle(id_: str) -> Path:
        return shared(rig, id_) if share else rig.bundle(id_, "sleep", "1000", change=pod)

    shim = await survivors(bundle("c1"))
    await shim.run(rig.root / "c1")
    await survivors(bundle("c2"))
    await remove(shim, "c1")
    before = await shim.replace()
    await shim.task.Shutdown(ShutdownRequest(id="c1"), timeout=5)
    await shim.run(rig.root / "c2")
    assert await daemon_of(shim.task) == before
    await remove(shim, "c2")
    await wait_gone([before], 5)


async def test_the_address_of_a_pod_goes_with_its_last_container(
    rig: Rig, survivors: Start
) -> None:
    first = shared(rig, "p1", pod="pod1")
    shim = await survivors(first)
    await shim.run(first)
    pod_socket = Path(socket_path(rig.address))
    other = shared(rig, "c1")
    await survivors(other)
    await shim.run(other)
    await remove(shim, "p1")
    assert not pod_socket.exists()
    await shim.replace()
    assert not pod_socket.exists()
    again = shared(rig, "p2", pod="pod1")
    await survivors(again)
    await shim.run(again)
    await shim.replace()
    await remove(shim, "p2")
    assert not pod_socket.exists()


async def test_a_cancelled_create_is_known_to_the_replacement(rig: Rig, survivors: Start) -> None:
    first = rig.bundle("c1", "sleep", "1000", change=pod)
    shim = await survivors(first)
    await shim.run(first)
    mark = rig.root / "mark"
    stuck = rig.wrapper(
        "stuck", f'case " $* " in *" create "*) touch {mark}; exec sleep 1000;; esac\nrunc "$@"'
    )
    request = rig.create_request(
        rig.bundle("c2", "true", change=pod), options=rig.options(binary_name=stuck)
    )
    await lose_call(rig, lambda task: task.Create, request, mark)
    await nothing_is_left(rig, "c2")  # it is undone
    assert not await connects(shim, "c2")
    await shim.replace()
    assert not await connects(shim, "c2")
    await shim.run(rig.root / "c2")  # another Create
    await shim.replace()
    assert await connects(shim, "c2")
    assert await connects(shim, "c1")


async def test_a_create_that_a_shutdown_has_cancelled_does_not_run_again(
    rig: Rig, survivors: Start
) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    shim = await survivors(bundle)
    create, delete, go = (rig.root / name for name in ("creates", "deletes", "go"))
    wait = f"touch {delete}; while [ ! -e {go} ]; do sleep 0.02; done"
    stuck = rig.wrapper(
        "stuck",
        f"""case " $* " in
*" create "*) echo create >>{create}; exec sleep 1000;;
*" delete "*) {wait};;
esac
exec runc "$@\"""",
    )
    request = rig.create_request(bundle, options=rig.options(binary_name=stuck))
    refused = []

    async def lose() -> None:
        with pytest.raises(GRPCError) as caught:
            await shim.task.Create(request, timeout=60)
        refused.append(caught.value.status)

    other = await rig.connect()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lose)
        await wait_path(create)
        nursery.start_soon(shut_down, other)
        await wait_path(delete)
        await shim.replace()
        go.touch()
    assert refused == [Status.UNAVAILABLE]
    assert create.read_text() == "create\n"
    await nothing_is_left(rig, "c1")


async def shut_down(task: TaskStub) -> None:
    await task.Shutdown(ShutdownRequest(id="c1"), timeout=20)


async def test_the_replacement_of_a_daemon_that_was_killed_in_its_shutdown_ends(
    rig: Rig, survivors: Start, following: Build
) -> None:
    """The daemons here wait for ten minutes without a container."""
    mark = rig.root / "killed"

    def change(text: str) -> str:
        text = text.replace("UNUSED_REPLACEMENT = 5.0", "UNUSED_REPLACEMENT = 600.0")
        kill = f"    if deposit.server and not Path({str(mark)!r}).exists():\n"
        kill += f"        Path({str(mark)!r}).touch()\n"
        kill += "        os.kill(os.getpid(), signal.SIGKILL)\n"
        return text.replace("    deposit.drop(LISTENER)\n", f"{kill}    deposit.drop(LISTENER)\n")

    following.edit("shim/daemon.py", change)
    shim = await survivors(bundle := rig.bundle("c1", "sleep", "1000"))
    await move(shim, await following.server())
    await shim.run(bundle)
    rig.track(await daemon_of(shim.task))
    await remove(shim, "c1")
    path = Path(socket_path(rig.address))
    with trio.fail_after(10 * PATIENCE):
        while path.exists():
            await trio.sleep(0.01)
    assert mark.exists()


async def connects(shim: Survivor, id_: str) -> bool:
    """Return whether a manager that restarts finds the container."""
    try:
        await shim.task.Connect(ConnectRequest(id=id_), timeout=20)
    except GRPCError as exc:
        assert exc.status is Status.NOT_FOUND  # noqa: PT017 - it may succeed
        return False
    return True
