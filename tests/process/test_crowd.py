"""Many containers and execs at once, dying at every moment: an oracle hears it all.

The runtime is the real runc, if need be in a wrapper that kills or waits at a
moment runc itself passes too fast.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.task_pb2 import PauseRequest, ResumeRequest, StateRequest
from tests.loops import turns
from tests.process.configs import host_pids
from tests.process.driven import Driven, verdict
from tests.process.oracle import Oracle
from tests.process.rig import NAMESPACE, Rig
from tests.process.steps import wait_path

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

# The pid file of a create or exec, wherever it stands in the arguments.
PID_FILE = """for word; do case $previous in --pid-file) file=$word;; esac; previous=$word; done
"""
# Gone, or a zombie: dead for certain when the runtime returns.
WAIT_DEAD = """exec 2> /dev/null
while read -r _ _ letter _ < /proc/$pid/stat && [ $letter != Z ]; do :; done
"""


async def one_life(driven: Driven, bundle: Path, code: int) -> None:
    """A container that runs three execs, has two die under it, and ends by itself."""
    id_ = bundle.name
    go = driven.rig.rootfs() / id_
    await driven.run(bundle)
    async with trio.open_nursery() as nursery:
        for number in (1, 2, 3):
            nursery.start_soon(driven.life_of_exec, id_, f"e{number}", (code + number) % 256)
        for number in (4, 5):
            nursery.start_soon(driven.exec, id_, f"e{number}", "sleep", "1000")
    go.touch()
    assert (await driven.wait(id_)).exit_status == code
    for number in (4, 5):
        assert (await driven.wait(id_, f"e{number}")).exit_status == 137
    assert (await driven.delete(id_)).exit_status == code


def waits_for_its_file(rig: Rig, id_: str, code: int) -> Path:
    script = f"while [ ! -e /{id_} ]; do sleep 0.05; done; exit {code}"
    return rig.bundle(id_, "sh", "-c", script)


async def test_many_containers_in_one_shim_keep_order_and_codes(rig: Rig) -> None:
    bundles = [waits_for_its_file(rig, f"c{n}", n + 1) for n in range(turns(20, 50))]
    driven = Driven(rig, await rig.start(bundles[0]))
    async with trio.open_nursery() as nursery:
        for number, bundle in enumerate(bundles):
            nursery.start_soon(one_life, driven, bundle, number + 1)
    await verdict(rig, driven.oracle, *(bundle.name for bundle in bundles))
    for bundle in bundles:
        assert all(len(driven.oracle.lives(bundle.name, f"e{n}")) == 1 for n in range(1, 6))


async def test_containers_of_ten_shims_keep_order_and_codes(rig: Rig) -> None:
    oracle = Oracle(NAMESPACE)
    bundles = [waits_for_its_file(rig, f"c{n}", n + 1) for n in range(10)]
    async with trio.open_nursery() as nursery:
        for number, bundle in enumerate(bundles):
            driven = Driven(rig, await rig.start(bundle), oracle)
            nursery.start_soon(one_life, driven, bundle, number + 1)
    assert len(rig.daemons) == 10
    await verdict(rig, oracle, *(bundle.name for bundle in bundles))


@pytest.mark.parametrize("spaces", ["own", "shared"])
async def test_init_dying_while_execs_start_is_told_last(rig: Rig, spaces: str) -> None:
    """With an own pid namespace, and with the host's, where the shim has to kill."""

    change = host_pids if spaces == "shared" else None
    rounds, delays = turns(20, 60), random.Random(spaces)
    bundles = [rig.bundle(f"c{n}", "sleep", "1000", change=change) for n in range(rounds)]
    driven = Driven(rig, await rig.start(bundles[0]))
    came: list[bool] = []

    async def try_one(id_: str, exec_id: str) -> None:
        came.append(await driven.try_exec(id_, exec_id, "sleep", "1000"))

    async def lane(mine: list[Path]) -> None:
        for bundle in mine:
            id_ = bundle.name
            began = trio.current_time()
            await driven.run(bundle)
            took = trio.current_time() - began
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(try_one, id_, f"e{number}")
                # Another moment each time; on a busy machine an exec takes longer, too.
                await trio.sleep(delays.uniform(0, 3 * took))
                await driven.kill(id_)
            assert (await driven.wait(id_)).exit_status == 137
            await driven.delete(id_)

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(lane, bundles[number::4])
    await verdict(rig, driven.oracle, *(bundle.name for bundle in bundles))
    # It was neither always too late nor always in time.
    assert True in came
    assert False in came


async def test_init_dying_when_the_runtime_has_made_an_exec_is_told_last(rig: Rig) -> None:
    began, go = rig.root / "began", rig.root / "go"
    script = f"""runc "$@"; status=$?
case " $* " in *" exec "*) touch {began}; until [ -e {go} ]; do sleep 0.02; done;; esac
exit $status"""
    bundle = rig.bundle("c1", "sleep", "1000", change=host_pids)
    driven = Driven(rig, await rig.start(bundle))
    await driven.run(bundle, options=rig.options(binary_name=rig.wrapper("slow", script)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driven.try_exec, "c1", "e1", "sleep", "1000")
        await wait_path(began)
        await driven.kill("c1")
        await wait_path(bundle / "init.exit")
        go.touch()
    assert (await driven.wait("c1")).exit_status == 137
    await driven.delete("c1")
    await verdict(rig, driven.oracle, "c1")
    assert "exit e1" in rig.sink.names()


async def test_many_execs_in_one_container_each_have_their_code_and_output(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    driven = Driven(rig, await rig.start(bundle))
    await driven.run(bundle)

    async def one(number: int) -> None:
        name, out, code = f"e{number}", rig.root / f"out{number}", number % 256
        script = f"echo from {number}; exit {code}"
        await driven.add("c1", name, "sh", "-c", script, stdout=f"file://{out}")
        await driven.start("c1", name)
        assert (await driven.wait("c1", name)).exit_status == code
        assert (await driven.delete("c1", name)).exit_status == code
        assert out.read_text() == f"from {number}\n"

    async with trio.open_nursery() as nursery:
        for number in range(turns(80, 200)):
            nursery.start_soon(one, number)
    await driven.end("c1")
    await verdict(rig, driven.oracle, "c1")


async def test_an_exec_dead_before_start_returns_has_its_code(rig: Rig) -> None:
    script = f"""{PID_FILE}runc "$@"; status=$?
case " $* " in *" exec "*) pid=$(cat $file)
{WAIT_DEAD};; esac
exit $status"""
    bundle = rig.bundle("c1", "sleep", "1000")
    driven = Driven(rig, await rig.start(bundle))
    await driven.run(bundle, options=rig.options(binary_name=rig.wrapper("late", script)))

    async def lane(name: int) -> None:
        for number in range(turns(6, 15)):
            await driven.life_of_exec("c1", f"e{name}-{number}", name * 15 + number)

    async with trio.open_nursery() as nursery:
        for name in range(4):
            nursery.start_soon(lane, name)
    await driven.end("c1")
    await verdict(rig, driven.oracle, "c1")


async def test_an_init_dead_before_create_returns_is_stopped_and_keeps_its_code(
    rig: Rig,
) -> None:
    script = f"""{PID_FILE}runc "$@"; status=$?
case " $* " in *" create "*) pid=$(cat $file); kill -9 $pid
{WAIT_DEAD};; esac
exit $status"""
    options = rig.options(binary_name=rig.wrapper("deadly", script))
    bundles = [rig.bundle(f"c{n}", "sleep", "1000") for n in range(10)]
    driven = Driven(rig, await rig.start(bundles[0]))

    async def one(bundle: Path) -> None:
        id_ = bundle.name
        pid = await driven.create(bundle, options=options)
        assert pid
        assert (await driven.wait(id_)).exit_status == 137
        state = await driven.task.State(StateRequest(id=id_), timeout=20)
        assert (state.status, state.pid) == (process_pb2.STOPPED, pid)
        with pytest.raises(GRPCError) as caught:
            await driven.start(id_)
        assert caught.value.status is Status.FAILED_PRECONDITION
        assert (await driven.delete(id_)).exit_status == 137

    async with trio.open_nursery() as nursery:
        for bundle in bundles:
            nursery.start_soon(one, bundle)
    await verdict(rig, driven.oracle, *(bundle.name for bundle in bundles))
    for bundle in bundles:
        assert rig.sink.names(bundle.name) == ["create", f"exit {bundle.name}", "delete"]


async def test_pausing_containers_that_die_meanwhile_keep_their_order(rig: Rig) -> None:
    """A pause or resume may overlap the exit; then no event follows the exit."""
    bundles = [rig.bundle(f"c{n}", "sleep", "1000") for n in range(12)]
    driven = Driven(rig, await rig.start(bundles[0]))
    delays = random.Random(7)

    async def toggle(id_: str) -> None:
        try:
            while True:
                await driven.task.Pause(PauseRequest(id=id_), timeout=60)
                await driven.task.Resume(ResumeRequest(id=id_), timeout=60)
        except GRPCError:
            pass  # it ended

    async def one(bundle: Path) -> None:
        id_ = bundle.name
        await driven.run(bundle)
        await driven.exec(id_, "e1", "sleep", "1000")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(toggle, id_)
            await trio.sleep(delays.uniform(0, 0.4))
            await driven.kill(id_)
            assert (await driven.wait(id_)).exit_status == 137
        assert (await driven.wait(id_, "e1")).exit_status == 137
        await driven.delete(id_)

    async with trio.open_nursery() as nursery:
        for bundle in bundles:
            nursery.start_soon(one, bundle)
    await verdict(rig, driven.oracle, *(bundle.name for bundle in bundles))
    assert "paused" in rig.sink.names()


async def test_oom_kills_are_told_before_the_exit(rig: Rig) -> None:
    def small(config: dict[str, Any]) -> None:
        config["linux"]["resources"]["memory"] = {"limit": 16 << 20}

    eat = ("sh", "-c", "x=x; while :; do x=$x$x; done")
    bundles = [rig.bundle(f"c{n}", *eat, change=small) for n in range(6)]
    driven = Driven(rig, await rig.start(bundles[0]))

    async def one(bundle: Path) -> None:
        await driven.run(bundle)
        assert (await driven.wait(bundle.name)).exit_status == 137
        await driven.delete(bundle.name)

    async with trio.open_nursery() as nursery:
        for bundle in bundles:
            nursery.start_soon(one, bundle)
    await verdict(rig, driven.oracle, *(bundle.name for bundle in bundles))
    for bundle in bundles:
        assert rig.sink.names(bundle.name).count("oom") == 1
