"""Running daemons are replaced by another version; their containers run on."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from google.protobuf.any_pb2 import Any as AnyMessage

from shim import names
from shim.api.task_pb2 import ConnectRequest, StateRequest
from shim.ttrpc.calls import UnaryUnaryMethod
from shim.version import VERSION
from tests.e2e.leftovers import processes
from tests.e2e.waiting import PATIENCE
from tests.process.builds import CURRENT, NEXT, Build
from tests.process.driven import verdict
from tests.process.rig import NAMESPACE
from tests.process.survival import (
    COUNT,
    daemon_of,
    exec_until_term,
    numbers,
    run_counting,
    run_read,
)
from tests.stdio.conftest import read_all, read_some, read_until

if TYPE_CHECKING:
    from shim.linux.fifos import Fd
    from tests.process.rig import Rig
    from tests.process.survival import Start, Survivor

pytestmark = pytest.mark.cold  # the fork servers are the test's own


async def version_of(shim: Survivor) -> str:
    """Return the version of the daemon at the other end of the first connection."""
    return (await shim.task.Connect(ConnectRequest(id="any"), timeout=20)).version


async def only_left(rig: Rig, *pids: int) -> None:
    """Wait until of all processes of the rig's daemons and containers only ``pids`` run."""
    with trio.fail_after(20 * PATIENCE):
        while list(processes(str(rig.root), NAMESPACE, pids)):
            await trio.sleep(0.01)


async def upgrade(build: Build, *args: str) -> None:
    done = await build.shimctl("upgrade", "--all", *args)
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_container_counts_during_ten_upgrades_and_none_is_missing(
    rig: Rig, survivors: Start, following: Build
) -> None:
    shim, pid, out = await run_read(rig, survivors)
    output, exits, daemons = bytearray(), [], {await daemon_of(shim.task)}

    async def read(fd: Fd) -> None:
        while chunk := await read_some(fd):
            output.extend(chunk)

    async def wait() -> None:
        exits.append((await shim.wait("c1")).exit_status)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, out)
        nursery.start_soon(wait)
        for build in itertools.islice(itertools.cycle([following, CURRENT]), 10):
            before = len(output)
            await upgrade(build)
            assert await version_of(shim) == build.version
            daemons.add(await daemon_of(shim.task))
            rig.track(await daemon_of(shim.task))
            assert len(output) > before
        assert len(daemons) == 11
        assert not exits
        state = await shim.task.State(StateRequest(id="c1"), timeout=5)
        assert state.pid == pid
        await shim.kill("c1", number=signal.SIGTERM)
    assert exits == [7]
    assert numbers(bytes(output)) > 100
    await shim.delete("c1")
    await verdict(rig, shim.oracle, "c1")
    assert rig.sink.names() == ["create", "start", "exit c1", "delete"]


async def test_an_upgraded_daemon_that_is_killed_is_replaced_by_its_version(
    rig: Rig, survivors: Start, following: Build
) -> None:
    shim, _ = await run_counting(rig, survivors)
    await upgrade(following)
    done = await CURRENT.shimctl("ps", "-o", "wide")
    header, *rows = done.stdout.splitlines()
    [row] = [row for row in rows if NAMESPACE in row.split() and "c1" in row.split()]
    assert row[header.index("VERSION") :].split()[0] == NEXT
    await exec_until_term(shim, "e1", 3)
    await shim.replace()
    assert await version_of(shim) == NEXT
    await shim.kill("c1", "e1", number=signal.SIGTERM)
    assert (await shim.wait("c1", "e1")).exit_status == 3
    await shim.kill("c1", number=signal.SIGTERM)
    assert (await shim.wait("c1")).exit_status == 7


async def test_a_daemon_of_the_installed_version_is_replaced_only_by_force(
    rig: Rig, survivors: Start, following: Build
) -> None:
    shim, pid = await run_counting(rig, survivors)
    before = await daemon_of(shim.task)
    done = await CURRENT.shimctl("upgrade", "c1")
    assert (done.returncode, done.stdout) == (0, f"c1  {VERSION} is installed\n")
    assert await daemon_of(shim.task) == before
    done = await CURRENT.shimctl("upgrade", "c1", "--force")
    assert (done.returncode, done.stdout) == (0, f"c1  {VERSION} -> {VERSION}\n")
    rig.track(after := await daemon_of(shim.task))
    assert after != before
    assert (await shim.task.State(StateRequest(id="c1"), timeout=5)).pid == pid
    del following


async def test_a_check_changes_nothing(rig: Rig, survivors: Start, following: Build) -> None:
    shim, _ = await run_counting(rig, survivors)
    before = await daemon_of(shim.task)
    done = await following.shimctl("upgrade", "--all", "--check", "-o", "json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert (found["id"], found["old_version"], found["version"]) == ("c1", VERSION, NEXT)
    assert (found["pid"], found["changed"]) == (before, False)
    assert await daemon_of(shim.task) == before


@pytest.mark.parametrize("args", [["--check"], []])
async def test_a_version_that_cannot_read_a_state_is_refused(
    rig: Rig, survivors: Start, following: Build, args: list[str]
) -> None:
    following.edit(
        "shim/recovery/versions.py",
        lambda text: text.replace("= 1, 1, 1", "= 1, 2, 1").replace(
            '"container": (1,)', '"container": (2,)'
        ),
    )
    shim, _ = await run_counting(rig, survivors)
    before = await daemon_of(shim.task)
    done = await following.shimctl("upgrade", "--all", *args)
    assert done.returncode == 125
    assert f"version {NEXT} cannot continue containers of version {VERSION}" in done.stderr
    assert "version 1 of the container state; it reads 2" in done.stderr
    assert await daemon_of(shim.task) == before


async def test_a_shim_that_a_manager_runs_by_another_name_is_not_left_out(
    rig: Rig, survivors: Start, following: Build
) -> None:
    """As one that stands in for containerd-shim-runc-v2."""
    following.edit(
        "shim/recovery/versions.py",
        lambda text: text.replace('"container": (1,)', '"container": (2,)'),
    )
    shim = await survivors(bundle := rig.bundle("c1", "sh", "-c", COUNT))
    (bundle / "shim-binary-path").write_text("/usr/bin/containerd-shim-runc-v2")
    await shim.run(bundle)
    done = await following.upgrade("--all")
    assert done.returncode == 125
    assert f"version {NEXT} cannot continue containers of version {VERSION}" in done.stderr


async def test_a_fork_server_that_cannot_read_a_state_refuses_the_daemon(
    rig: Rig, survivors: Start, following: Build
) -> None:
    """As above, for a client that does not check before."""
    following.edit(
        "shim/start/mover.py", lambda text: text.replace("json.loads(versions)", '{"daemon": 9}')
    )
    shim, _ = await run_counting(rig, survivors)
    before = await daemon_of(shim.task)
    done = await following.upgrade("--all")
    assert done.returncode == 125
    assert "refuses this shim" in done.stderr
    assert "cannot read version 9 of the daemon state" in done.stderr
    assert await daemon_of(shim.task) == before
    await shim.replace()  # its own fork server still keeps it


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("raise OSError('a fault')", id="an error"),
        pytest.param("import time; time.sleep(60)", id="a hang"),
        pytest.param("os.kill(os.getpid(), 9)", id="a kill"),
    ],
)
async def test_the_old_version_goes_on_if_the_next_one_does_not_serve(
    rig: Rig, survivors: Start, following: Build, fault: str
) -> None:
    following.edit(
        "shim/daemon.py",
        lambda text: text.replace(
            "            await service.restore(inherited)\n",
            f"            await service.restore(inherited)\n            {fault}\n",
        ),
    )
    shim, pid, out = await run_read(rig, survivors)
    output = await read_until(out, 6)
    done = await following.upgrade("--all")
    rig.track(await daemon_of(shim.task))
    assert done.returncode == 125
    assert f"version {NEXT} does not serve" in done.stderr
    assert f"version {VERSION} goes on" in done.stderr
    assert await version_of(shim) == VERSION
    assert (await shim.task.State(StateRequest(id="c1"), timeout=5)).pid == pid
    output += await read_until(out, 4000)
    await shim.kill("c1", number=signal.SIGTERM)
    assert numbers(output + await read_all(out)) > 1000
    assert (await shim.wait("c1")).exit_status == 7


async def test_a_new_version_goes_on_alone_if_the_old_one_cannot_read_its_states(
    rig: Rig, survivors: Start, following: Build
) -> None:
    """It is killed after it has written states, and the old version must not read them."""
    following.edit(
        "shim/recovery/versions.py",
        lambda text: text.replace("= 1, 1, 1", "= 1, 2, 1").replace(
            '"container": (1,)', '"container": (1, 2)'
        ),
    )
    killed = str(rig.root / "killed")
    restoring = "            await service.restore(inherited)\n"
    kill = (
        f"            if not os.path.exists({killed!r}):\n"
        f"                os.close(os.open({killed!r}, os.O_CREAT))\n"
        "                os.kill(os.getpid(), 9)\n"
    )
    following.edit("shim/daemon.py", lambda text: text.replace(restoring, restoring + kill))
    shim, pid = await run_counting(rig, survivors)
    await upgrade(following)
    assert (rig.root / "killed").exists()
    assert await version_of(shim) == NEXT
    assert (await shim.task.State(StateRequest(id="c1"), timeout=5)).pid == pid
    rig.track(await daemon_of(shim.task))
    done = await CURRENT.shimctl("upgrade", "--all")  # a downgrade
    assert done.returncode == 125
    assert "version 2 of the container state; it reads 1" in done.stderr
    assert await version_of(shim) == NEXT
    await shim.kill("c1", number=signal.SIGTERM)
    assert (await shim.wait("c1")).exit_status == 7


@pytest.mark.parametrize("number", [1, 2])
async def test_the_old_version_goes_on_if_the_next_one_cannot_read_a_state(
    rig: Rig, survivors: Start, following: Build, number: int
) -> None:
    """The number of the state is known, and the fault is found before a state is written."""
    if number == 2:
        following.edit(
            "shim/recovery/versions.py",
            lambda text: text.replace("= 1, 1, 1", "= 1, 2, 1").replace(
                '"container": (1,)', '"container": (1, 2)'
            ),
        )
    following.edit(
        "shim/container/snapshot.py",
        lambda text: text.replace('value["constants"]\n', 'value["later"]\n'),
    )
    shim, pid = await run_counting(rig, survivors)
    done = await following.upgrade("--all")
    rig.track(await daemon_of(shim.task))
    assert (done.returncode, f"version {VERSION} goes on" in done.stderr) == (125, True)
    assert await version_of(shim) == VERSION
    assert (await shim.task.State(StateRequest(id="c1"), timeout=5)).pid == pid


async def test_a_daemon_without_survive_is_named_with_the_remedy(
    rig: Rig, survivors: Start, following: Build
) -> None:
    (rig.root / "host.toml").write_text("survive = false\n")
    shim, _ = await run_counting(rig, survivors)
    done = await following.upgrade("--all")
    assert done.returncode == 125
    assert done.stderr.startswith("shimctl: c1: its shim was started without `survive = true`")
    assert "/etc/trio-shim.toml" in done.stderr
    assert await version_of(shim) == VERSION


async def test_a_daemon_that_is_killed_during_its_move_is_replaced_once(
    rig: Rig, survivors: Start, following: Build
) -> None:
    moments = random.Random(1)
    shim, pid = await run_counting(rig, survivors)
    servers = [await build.server() for build in (CURRENT, following)]
    for path in [*servers[::-1]] * 10:
        before = await daemon_of(shim.task)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(move, shim, path)
            await trio.sleep(moments.uniform(0, 0.02))
            with suppress(ProcessLookupError):  # it has moved
                os.kill(before, signal.SIGKILL)
        rig.track(after := await daemon_of(shim.task))
        assert after != before
        assert (await shim.task.State(StateRequest(id="c1"), timeout=20)).pid == pid
        await only_left(rig, pid, after)
    await shim.kill("c1", number=signal.SIGTERM)
    assert (await shim.wait("c1")).exit_status == 7


async def test_a_daemon_moves_after_the_operation_under_way(
    rig: Rig, survivors: Start, following: Build
) -> None:
    runtime = rig.wrapper(
        "slow-runc",
        f'case " $* " in *" exec "*) touch {rig.root}/began\n'
        f"while ! test -e {rig.root}/go; do sleep 0.01; done; esac\n"
        'exec runc "$@"',
    )
    shim = await survivors(bundle := rig.bundle("c1", "sh", "-c", COUNT))
    await shim.run(bundle, options=rig.options(binary_name=runtime))
    path = await following.server()
    await shim.add("c1", "e1", "sh", "-c", "exit 3")
    versions = []

    async def upgrade() -> None:
        versions.append((await move(shim, path))["version"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shim.start, "c1", "e1")
        with trio.fail_after(20 * PATIENCE):
            while not (rig.root / "began").exists():
                await trio.sleep(0.01)
        nursery.start_soon(upgrade)
        await trio.testing.wait_all_tasks_blocked()
        assert await version_of(shim) == VERSION  # it handles the requests in their order
        (rig.root / "go").touch()
    assert versions == [NEXT]
    rig.track(await daemon_of(shim.task))
    assert (await shim.wait("c1", "e1")).exit_status == 3


async def test_moves_follow_each_other_at_once(
    rig: Rig, survivors: Start, following: Build
) -> None:
    shim, pid = await run_counting(rig, survivors)
    servers = [await build.server() for build in (following, CURRENT)]
    for path in servers * 15:
        answer = await move(shim, path)
        assert answer["version"] == (NEXT if path == servers[0] else VERSION)
    rig.track(after := await daemon_of(shim.task))
    await only_left(rig, pid, after)


async def move(shim: Survivor, path: str) -> dict[str, object]:
    """Have the daemon move to the fork server at ``path``; return its answer."""
    call = UnaryUnaryMethod(shim.task.State.channel, names.MOVE, AnyMessage, AnyMessage)
    reply = await call(AnyMessage(value=json.dumps({"server": path}).encode()), timeout=60)
    return dict(json.loads(reply.value))
