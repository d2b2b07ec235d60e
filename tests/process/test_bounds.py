"""The files of a runtime are read within a bound, and impossible values are ignored."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.task_pb2 import CheckpointTaskRequest, DeleteRequest, StartRequest, StateRequest
from tests.process.rig import Rig, alive, wait_gone
from tests.process.steps import kill_daemon
from tests.process.test_delete import delete

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyMessage

    from shim.api.task_grpc import TaskStub

# The most KiB that a daemon may need for any input.
MEMORY = 80 << 10


def peak(pid: int) -> int:
    """Return the most memory that a process had so far, in KiB."""
    match = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1])


async def run_and_exec(rig: Rig, task: TaskStub, bundle: Path, options: AnyMessage) -> None:
    await rig.run(task, bundle, options=options)
    await task.Exec(rig.exec_request(bundle.name, "e1", "sleep", "1000"), timeout=10)
    await task.Start(StartRequest(id=bundle.name, exec_id="e1"), timeout=20)


@pytest.mark.parametrize("verb", ["create", "exec"])
async def test_a_log_of_300_megabytes_costs_its_end(rig: Rig, verb: str) -> None:
    script = f"""
log() {{ while [ $# -gt 1 ]; do [ "$1" = --log ] && echo "$2" && return; shift; done; }}
case " $* " in
*" {verb} "*) to=$(log "$@"); truncate -s 300M "$to"
  printf '\\n{{"level":"error","msg":"no room for you"}}\\n' >> "$to"; exit 1;;
esac
exec runc "$@"
"""
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    options = rig.options(binary_name=rig.wrapper("noisy", script))
    with pytest.raises(GRPCError, match="no room for you"):
        await run_and_exec(rig, task, bundle, options)
    assert peak(rig.daemons[0]) < MEMORY


async def test_a_pid_file_of_300_megabytes_is_none(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    script = (
        f'runc "$@" || exit; case " $* " in *" create "*) truncate -s 300M {bundle}/init.pid; esac'
    )
    task = await rig.start(bundle)
    options = rig.options(binary_name=rig.wrapper("noisy", script))
    with pytest.raises(GRPCError, match="no pid"):
        await task.Create(rig.create_request(bundle, options=options), timeout=20)
    assert peak(rig.daemons[0]) < MEMORY
    assert not list(rig.runc_root.glob("*/*"))


@pytest.mark.parametrize("verb", ["create", "exec"])
async def test_a_pid_file_that_names_a_stranger_is_refused(rig: Rig, verb: str) -> None:
    # A process of the host, and the init of the pod's other container.
    pod = {"io.kubernetes.cri.sandbox-id": "pod1"}
    bundles = [
        rig.bundle(id_, "sleep", "1000", change=lambda config: config.update(annotations=pod))
        for id_ in ("c1", "c2")
    ]
    task = await rig.start(bundles[0])
    strangers = [(await rig.run(task, bundles[0])).pid, os.getppid() or os.getpid()]
    for number, stranger in enumerate(strangers):
        name = "init" if verb == "create" else "e1"
        script = f"""
runc "$@" || exit
case " $* " in *" {verb} "*) echo {stranger} > {bundles[1]}/{name}.pid; esac
"""
        options = rig.options(binary_name=rig.wrapper(f"lying{number}", script))
        with pytest.raises(GRPCError, match=f"cannot watch process {stranger}") as caught:
            await run_and_exec(rig, task, bundles[1], options)
        assert caught.value.status is Status.NOT_FOUND
        assert alive(stranger)
        if verb == "exec":
            init = (await task.State(StateRequest(id="c2"))).pid
            os.kill(init, signal.SIGKILL)
            await wait_gone([init])
            with trio.fail_after(20):
                await rig.sink.wait_for("exit c2", "c2")
            await task.Delete(DeleteRequest(id="c2"), timeout=20)
            rig.sink.envelopes.clear()
        assert not list(rig.runc_root.glob("*/c2"))


async def test_delete_reads_no_huge_file(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    pid = (await rig.run(task, bundle)).pid
    await kill_daemon(rig)
    (bundle / "members").mkdir()
    (bundle / "members/c2").touch()
    for name in ("address", "init.exit", "members/c2"):
        os.truncate(bundle / name, 1 << 40) if (bundle / name).exists() else None
    assert (await delete(rig, bundle)).pid == pid
    assert not alive(pid)


async def test_of_criu_s_log_the_end_is_kept(rig: Rig) -> None:
    work = rig.root / "c1/work/criu-work"
    script = f"""
case " $* " in
*" checkpoint "*) truncate -s 300M {work}/dump.log; echo the end >> {work}/dump.log; exit 1;;
esac
exec runc "$@"
"""
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle, options=rig.options(binary_name=rig.wrapper("failing", script)))
    request = CheckpointTaskRequest(id="c1", path=str(rig.root / "image"))
    with pytest.raises(GRPCError, match=r"criu-dump\.log"):
        await task.Checkpoint(request, timeout=20)
    kept = (bundle / "criu-dump.log").read_bytes()
    assert kept.endswith(b"the end\n")
    assert len(kept) < 10 << 20
    assert peak(rig.daemons[0]) < MEMORY
