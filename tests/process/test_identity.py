"""Pids that are used again at once: no exit and no signal goes to the wrong process.

The shim runs in a pid namespace whose next pid is set back all the time, so that the pid of a
reaped process goes to the next exec, container or runtime.

Source: pid_namespaces(7), /proc/sys/kernel/ns_last_pid.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.task_grpc import TaskStub
from shim.api.task_pb2 import PidsRequest, StateRequest
from shim.cgroup.files import signal_each
from shim.errors import NotFoundError
from shim.linux import sockets
from shim.reaper import open_reaper
from tests.process.driven import Driven, verdict
from tests.process.rig import NAMESPACE, SHIM, Rig

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

LAST = Path("/proc/sys/kernel/ns_last_pid")
# Its own subshells get pids too, which are as good as any.
AGAIN = f"""(while :; do echo 300 > {LAST}; sleep 0.02; done) &
cd $BUNDLE; $SHIM > $ANSWER < /dev/null; exec sleep 1000"""


async def start_where_pids_are_few(rig: Rig, bundle: Path) -> TaskStub:
    """Start the shim of ``bundle`` in a new pid namespace, and return a client.

    The pids in its replies are those of that namespace: the rig must not use them.
    """
    answer = rig.root / "answer"
    flags = ["-namespace", NAMESPACE, "-address", str(rig.root / "manager"), "-id", bundle.name]
    environ = os.environ | {
        "TTRPC_ADDRESS": str(rig.root / "events"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "BUNDLE": str(bundle),
        "ANSWER": str(answer),
    }
    script = AGAIN.replace("$SHIM", shlex.join([*SHIM, *flags, "start"]))
    spaces = ["--pid", "--fork", "--mount-proc", "--kill-child"]
    run = partial(trio.run_process, ["unshare", *spaces, "sh", "-c", script], env=environ)
    rig.nursery.start_soon(partial(run, check=False))
    with trio.fail_after(20):
        while not answer.exists() or not answer.read_bytes():
            await trio.sleep(0.01)
    rig.address = rig.answer(answer.read_bytes())
    stream = await sockets.connect(rig.address)
    return TaskStub(await rig.nursery.start(rig._hold, stream))


async def test_pids_used_again_are_never_mistaken(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    driven = Driven(rig, await start_where_pids_are_few(rig, bundle))
    await driven.run(bundle)
    await driven.exec("c1", "victim", "sleep", "1000")
    containers = [rig.bundle(f"d{n}", "sh", "-c", f"exit {n}") for n in range(20)]

    async def exits(lane: int) -> None:
        for number in range(60):
            name, code = f"e{lane}-{number}", lane * 60 + number + 1
            await driven.exec("c1", name, "sh", "-c", f"exit {code}")
            assert (await driven.wait("c1", name)).exit_status == code
            await gone(name)
            assert (await driven.delete("c1", name)).exit_status == code

    async def gone(name: str) -> None:
        with pytest.raises(GRPCError) as caught:
            await driven.kill("c1", name)
        assert caught.value.status is Status.NOT_FOUND

    async def kills() -> None:
        # The signal and the exit overlap; the signal must not reach another process.
        for number in range(40):
            name = f"k{number}"
            await driven.exec("c1", name, "sleep", "0.01")
            try:
                await driven.kill("c1", name, signal.SIGUSR1)
            except GRPCError as exc:
                assert exc.status is Status.NOT_FOUND  # noqa: PT017 - it need not be raised
            status = (await driven.wait("c1", name)).exit_status
            assert status in (0, 128 + signal.SIGUSR1)
            await driven.delete("c1", name)

    async def others() -> None:
        for number, other in enumerate(containers):
            await driven.run(other)
            assert (await driven.wait(other.name)).exit_status == number
            await driven.delete(other.name)

    async with trio.open_nursery() as nursery:
        for lane in range(3):
            nursery.start_soon(exits, lane)
        nursery.start_soon(kills)
        nursery.start_soon(others)

    for exec_id in ("", "victim"):
        state = await driven.task.State(StateRequest(id="c1", exec_id=exec_id))
        assert state.status == process_pb2.RUNNING
    assert len((await driven.task.Pids(PidsRequest(id="c1"))).processes) == 2
    await driven.kill("c1", all=True)
    assert (await driven.wait("c1")).exit_status == 137
    assert (await driven.wait("c1", "victim")).exit_status == 137
    await driven.delete("c1")
    await verdict(rig, driven.oracle, "c1", *(other.name for other in containers))
    # The point of it all: few pids for many processes.
    used = Counter(e.pid for e in rig.sink.events if hasattr(e, "exit_status"))
    assert len(used) < sum(used.values()) / 3, used


async def test_a_pid_used_again_at_once_is_another_process() -> None:
    again = 0
    async with open_reaper() as reaper:
        for number in range(200):
            old = reaper.spawn(["sh", "-c", f"exit {number}"])
            assert (await old.wait()).exit_status == number
            LAST.write_text(str(old.pid - 1))
            new = reaper.spawn(
                ["sh", "-c", f"read x; exit {number + 1}"], fds={0: (end := pipe())[0]}
            )
            os.close(end[0])
            again += new.pid == old.pid
            with pytest.raises(NotFoundError):
                old.signal(signal.SIGKILL)
            assert (old.exit, new.exit) == (await old.wait(), None)
            os.close(end[1])
            assert (await new.wait()).exit_status == number + 1
    assert again > 50


def pipe() -> tuple[int, int]:
    return os.pipe2(os.O_CLOEXEC)


async def test_a_signal_for_a_whole_cgroup_does_not_reach_who_has_left_it() -> None:
    """Between the read of the group and the signal, another process can get a pid."""
    async with open_reaper() as reaper:
        stranger, member = reaper.spawn(["sleep", "60"]), reaper.spawn(["sleep", "60"])
        looks: Iterator[list[int]] = iter([[stranger.pid, member.pid], [member.pid], [member.pid]])
        signal_each(lambda: next(looks), signal.SIGKILL)
        assert (await member.wait()).exit_status == 137
        stranger.signal(signal.SIGTERM)
        assert (await stranger.wait()).exit_status == 128 + signal.SIGTERM
