"""binary:// and binary-v2:// with real containers: good loggers, and every bad one we know."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.task_pb2 import DeleteRequest, StartRequest, StateRequest, WaitRequest
from tests.process.rig import alive
from tests.stdio.whole.client import MIB, ended, wait_asleep, wait_until

if TYPE_CHECKING:
    from tests.process.rig import Rig

SCHEMES = {"binary": "exec 5>&-", "binary-v2": "echo >&5; exec 5>&-"}
COPY = "cat <&3 >stdout & cat <&4 >stderr & exec 3<&- 4<&-; wait"


def logger(rig: Rig, name: str, script: str, scheme: str = "binary", query: str = "") -> str:
    """Make a logging program, which runs in a directory with its name."""
    directory = rig.root / name
    directory.mkdir()
    program = rig.wrapper(f"{name}.sh", f"cd {directory}; echo $$ >pid; {script}")
    return f"{scheme}://{program}{query}"


def logger_pid(rig: Rig, name: str) -> int:
    return int((rig.root / name / "pid").read_text())


def daemon_fds(rig: Rig) -> list[str]:
    """Return what our shim has open, but for sockets, which come and go, and its journal.

    That is opened by the first event and stays.
    """
    fds = [path.readlink() for path in Path(f"/proc/{rig.daemons[0]}/fd").iterdir()]
    kinds = (str(fd).partition(":")[0] for fd in fds if fd.name != "events.journal")
    return sorted(kind for kind in kinds if kind != "socket")


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_slow_logger_slows_the_container_and_gets_every_byte(
    rig: Rig, scheme: str
) -> None:
    data = os.urandom(8 * MIB)
    (rig.rootfs() / "data").write_bytes(data)
    until = "until test -e go; do sleep 0.02; done"
    address = logger(
        rig, "log", f"{SCHEMES[scheme]}; {until}; {COPY}; sleep 0.3; touch done", scheme
    )
    bundle = rig.bundle("c1", "sh", "-c", "echo err >&2; exec cat /data")
    task = await rig.start(bundle)
    created = await rig.run(task, bundle, stdout=address, stderr="not looked at")
    await wait_asleep(created.pid)
    assert (await task.State(StateRequest(id="c1"), timeout=5)).status == process_pb2.RUNNING
    (rig.root / "log/go").touch()
    assert await ended(task, "c1") == 0
    assert (rig.root / "log/stdout").read_bytes() == data
    assert (rig.root / "log/stderr").read_bytes() == b"err\n"
    assert (rig.root / "log/done").exists()  # Delete has waited for it
    await wait_until(lambda: not alive(logger_pid(rig, "log")))


@pytest.mark.parametrize("when", ["exit 1", "read line <&3; exit 1"])
async def test_a_logger_that_dies_is_a_broken_pipe_to_the_container(rig: Rig, when: str) -> None:
    address = logger(rig, "log", f"exec 5>&-; {when}")
    bundle = rig.bundle("c1", "sh", "-c", "yes; sleep 1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    await task.Exec(rig.exec_request("c1", "e1", "yes", stdout=address), timeout=10)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
    assert await ended(task, "c1", "e1") == 128 + 13


async def test_a_container_without_output_does_not_notice_a_dead_logger(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sh", "-c", "until test -e /go; do sleep 0.02; done; exit 3")
    task = await rig.start(bundle)
    await rig.run(task, bundle, stdout=logger(rig, "log", "exit 1"))
    await wait_until(lambda: not alive(logger_pid(rig, "log")))
    (rig.rootfs() / "go").touch()
    assert await ended(task, "c1") == 3


async def test_a_logger_that_is_never_ready_fails_the_create_and_leaves_nothing(rig: Rig) -> None:
    bundles = [rig.bundle(scheme, "true", change=_pod) for scheme in SCHEMES]
    task = await rig.start(bundles[0])
    fds = daemon_fds(rig)

    async def create(bundle: Path) -> None:
        address = logger(rig, f"log-{bundle.name}", "exec sleep 1000", scheme=bundle.name)
        began = time.monotonic()
        with pytest.raises(GRPCError, match="was not ready within 10 s") as caught:
            await task.Create(rig.create_request(bundle, stdout=address), timeout=60)
        assert time.monotonic() - began < 20
        assert caught.value.status is Status.DEADLINE_EXCEEDED
        assert "\n" not in str(caught.value.message)

    async with trio.open_nursery() as nursery:
        for bundle in bundles:
            nursery.start_soon(create, bundle)
    for bundle in bundles:
        assert not alive(logger_pid(rig, f"log-{bundle.name}"))
        with pytest.raises(GRPCError, match="not found"):
            await task.State(StateRequest(id=bundle.name), timeout=5)
    assert not list(rig.runc_root.glob("*/*"))
    await wait_until(lambda: daemon_fds(rig) == fds)


@pytest.mark.parametrize("kind", ["init", "exec"])
async def test_a_second_version_logger_that_ends_unready_is_an_error_at_once(
    rig: Rig, kind: str
) -> None:
    address = logger(rig, "log", "exit 1", "binary-v2")
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    with trio.fail_after(20):
        if kind == "init":
            with pytest.raises(GRPCError, match=r"log\.sh ended or closed fd 5 before"):
                await task.Create(rig.create_request(bundle, stdout=address))
        await rig.run(task, bundle)
        if kind == "exec":
            await task.Exec(rig.exec_request("c1", "e1", "true", stdout=address))
            with pytest.raises(GRPCError, match=r"log\.sh ended or closed fd 5 before"):
                await task.Start(StartRequest(id="c1", exec_id="e1"))
            await task.Delete(DeleteRequest(id="c1", exec_id="e1"))


async def test_a_logger_that_ignores_sigterm_holds_no_delete_for_ever(rig: Rig) -> None:
    """Two seconds after the end of its input it is asked, and ten later it is killed."""
    stubborn = "trap '' TERM; exec 5>&-; while :; do sleep 0.2; done"
    bundle = rig.bundle("c1", "sh", "-c", "until test -e /go; do sleep 0.02; done; exit 4")
    task = await rig.start(bundle)
    fds = daemon_fds(rig)
    await rig.run(task, bundle, stdout=logger(rig, "log-init", stubborn))
    address = logger(rig, "log-exec", stubborn)
    await task.Exec(rig.exec_request("c1", "e1", "true", stdout=address), timeout=10)
    await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
    with trio.fail_after(20):  # the end of the init would kill it
        await task.Wait(WaitRequest(id="c1", exec_id="e1"))
    began = time.monotonic()
    async with trio.open_nursery() as nursery:

        async def delete_exec() -> None:
            assert await ended(task, "c1", "e1", seconds=30) == 0

        nursery.start_soon(delete_exec)
        (rig.rootfs() / "go").touch()
        assert await ended(task, "c1", seconds=30) == 4
    assert time.monotonic() - began < 20
    for name in ("log-init", "log-exec"):
        assert not alive(logger_pid(rig, name))
    await wait_until(lambda: daemon_fds(rig) == fds)


async def test_a_logger_has_its_arguments_two_variables_and_six_files(rig: Rig) -> None:
    script = (
        'echo "$*" >$CONTAINER_ID.args; tr "\\0" "\\n" </proc/$$/environ >$CONTAINER_ID.env; '
        "ls /proc/$$/fd >$CONTAINER_ID.fds; exec 5>&-; exec cat <&3"
    )
    query = "?zone=b&app=x%20y&zone=a&flag&last=1"
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    address = logger(rig, "log", script, query=query)
    await rig.run(task, bundle, stdout=address)
    await task.Exec(rig.exec_request("c1", "an-exec", "true", stdout=address), timeout=10)
    await task.Start(StartRequest(id="c1", exec_id="an-exec"), timeout=20)
    assert await ended(task, "c1", "an-exec") == 0
    for id_ in ("c1", "an-exec"):
        read = {kind: rig.root / f"log/{id_}.{kind}" for kind in ("args", "env", "fds")}
        assert read["args"].read_text() == "zone b app x y flag  last 1\n"
        environ = read["env"].read_text().split()
        assert sorted(environ) == [f"CONTAINER_ID={id_}", "CONTAINER_NAMESPACE=trio-shim-test"]
        # From 10 on are the shell's own.
        assert {fd for fd in read["fds"].read_text().split() if len(fd) == 1} == set("012345")


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_logger_gets_all_of_a_terminals_output(rig: Rig, scheme: str) -> None:
    address = logger(rig, "log", f"{SCHEMES[scheme]}; {COPY}", scheme)

    def at_terminal(config: dict[str, dict[str, object]]) -> None:
        config["process"]["terminal"] = True

    bundle = rig.bundle("c1", "sh", "-c", "seq 200000; exit 5", change=at_terminal)
    task = await rig.start(bundle)
    await rig.run(task, bundle, stdout=address, terminal=True)
    assert await ended(task, "c1", seconds=20) == 5
    expected = b"".join(b"%d\r\n" % i for i in range(1, 200_001))
    assert (rig.root / "log/stdout").read_bytes() == expected
    assert (rig.root / "log/stderr").read_bytes() == b""


def _pod(config: dict[str, object]) -> None:
    config["annotations"] = {"io.kubernetes.cri.sandbox-id": "pod1"}
