"""crun and gVisor in runc's place: the same lives, the same codes, and nothing left."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.cgroups_v2_pb2 import Metrics
from shim.api.introspection_pb2 import RuntimeInfo
from shim.api.task_pb2 import (
    DeleteRequest,
    DeleteResponse,
    KillRequest,
    PauseRequest,
    PidsRequest,
    ResizePtyRequest,
    ResumeRequest,
    ShutdownRequest,
    StartRequest,
    StateRequest,
    StatsRequest,
    WaitRequest,
)
from tests.process.crio import open_fifo, read_all
from tests.process.rig import Rig, alive, wait_gone
from tests.process.runtimes import Engine, find, light
from tests.process.steps import kill_daemon

pytestmark = pytest.mark.e2e


async def test_a_whole_life(rig: Rig, engine: Engine) -> None:
    bundle = engine.bundle("c1", "sleep", "1000")
    task, pid = await engine.run(bundle)
    state = await task.State(StateRequest(id="c1"), timeout=5)
    assert (state.status, state.pid) == (process_pb2.RUNNING, pid)
    assert pid in {p.pid for p in (await task.Pids(PidsRequest(id="c1"), timeout=5)).processes}
    for number in (0, 3):
        await task.Exec(rig.exec_request("c1", "e1", "sh", "-c", f"exit {number}"), timeout=10)
        await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
        waited = await task.Wait(WaitRequest(id="c1", exec_id="e1"), timeout=20)
        assert waited.exit_status == number
        await task.Delete(DeleteRequest(id="c1", exec_id="e1"), timeout=15)
    await task.Kill(KillRequest(id="c1", signal=9), timeout=10)
    assert (await task.Wait(WaitRequest(id="c1"), timeout=20)).exit_status == 137
    with pytest.raises(GRPCError) as caught:
        await task.Kill(KillRequest(id="c1", signal=9), timeout=10)
    assert caught.value.status is Status.NOT_FOUND
    await task.Delete(DeleteRequest(id="c1"), timeout=20)
    assert not list(engine.state.glob("c1*"))
    await task.Shutdown(ShutdownRequest(id="c1"), timeout=5)
    await wait_gone(rig.daemons)
    one = ["exec-added", "exec-started", "exit e1"]
    assert rig.sink.names("c1") == ["create", "start", *one, *one, "exit c1", "delete"]


@pytest.mark.parametrize(("script", "code"), [("exit 5", 5), ("kill -9 $$; sleep 9", 137)])
async def test_the_code_of_init_is_passed_on(
    rig: Rig, engine: Engine, script: str, code: int
) -> None:
    # A shell in a pid namespace cannot kill itself, being its init; its child can.
    bundle = engine.bundle("c1", "sh", "-c", f"sh -c '{script}'; exit $?")
    task, _ = await engine.run(bundle)
    assert (await task.Wait(WaitRequest(id="c1"), timeout=20)).exit_status == code
    await task.Delete(DeleteRequest(id="c1"), timeout=20)


async def test_options_in_toml_name_it_too(rig: Rig, engine: Engine) -> None:
    bundle = engine.bundle("c1", "sh", "-c", "exit 6")
    task, _ = await engine.run(bundle, options=engine.toml())
    assert (bundle / "runtime").read_text() == engine.binary
    assert list(engine.state.glob("c1*"))
    assert (await task.Wait(WaitRequest(id="c1"), timeout=20)).exit_status == 6
    await task.Delete(DeleteRequest(id="c1"), timeout=20)


async def test_output_and_errors_stay_apart(rig: Rig, engine: Engine) -> None:
    out, err = rig.root / "out", rig.root / "err"
    for path in (out, err):
        path.touch()
    bundle = engine.bundle("c1", "sh", "-c", "echo to-out; echo to-err >&2; exit 1")
    task, _ = await engine.run(bundle, stdout=str(out), stderr=str(err))
    assert (await task.Wait(WaitRequest(id="c1"), timeout=20)).exit_status == 1
    await task.Delete(DeleteRequest(id="c1"), timeout=20)
    assert (out.read_text(), err.read_text()) == ("to-out\n", "to-err\n")


async def test_paused_it_stands_still_until_it_is_resumed(rig: Rig, engine: Engine) -> None:
    task, pid = await engine.run(engine.bundle("c1", "sleep", "1000"))
    for _ in range(2):
        await task.Pause(PauseRequest(id="c1"), timeout=10)
        state = await task.State(StateRequest(id="c1"), timeout=5)
        assert state.status == process_pb2.PAUSED
        await task.Resume(ResumeRequest(id="c1"), timeout=10)
    if engine.name == "crun":  # gVisor sends no signal to a paused container
        await task.Pause(PauseRequest(id="c1"), timeout=10)
    await task.Kill(KillRequest(id="c1", signal=9), timeout=10)
    assert (await task.Wait(WaitRequest(id="c1"), timeout=20)).exit_status == 137
    await task.Delete(DeleteRequest(id="c1"), timeout=20)
    assert not alive(pid)


async def test_a_terminal_has_its_size_and_its_code(rig: Rig, engine: Engine) -> None:
    def terminal(config: dict[str, Any]) -> None:
        light(config)
        config["process"]["terminal"] = True

    output = bytearray()
    rig.nursery.start_soon(read_all, open_fifo(rig.root / "tty"), output)
    bundle = engine.bundle(
        "c1", "sh", "-c", "test -t 0 && while sleep 0.05; do stty size; done", change=terminal
    )
    task, _ = await engine.run(bundle, terminal=True, stdout=str(rig.root / "tty"))
    await task.ResizePty(ResizePtyRequest(id="c1", width=132, height=43), timeout=5)
    with trio.fail_after(20):
        while b"43 132\r\n" not in output:
            await trio.sleep(0.02)
    await task.Kill(KillRequest(id="c1", signal=9), timeout=10)
    assert (await task.Wait(WaitRequest(id="c1"), timeout=20)).exit_status == 137
    await task.Delete(DeleteRequest(id="c1"), timeout=20)


async def test_what_it_uses_is_measured_where_it_has_a_cgroup(rig: Rig, engine: Engine) -> None:
    task, _ = await engine.run(engine.bundle("c1", "sh", "-c", "while :; do :; done"))
    if engine.name == "runsc":
        # Without a cgroup of the container, its processes are in the shim's, which measures
        # others.
        with pytest.raises(GRPCError) as caught:
            await task.Stats(StatsRequest(id="c1"), timeout=5)
        assert caught.value.status is Status.NOT_FOUND
        return
    stats = (await task.Stats(StatsRequest(id="c1"), timeout=5)).stats
    assert stats.type_url == "io.containerd.cgroups.v2.Metrics"
    with trio.fail_after(20):
        while not Metrics.FromString(stats.value).cpu.usage_usec:
            await trio.sleep(0.02)
            stats = (await task.Stats(StatsRequest(id="c1"), timeout=5)).stats


async def test_a_program_that_is_not_there_leaves_nothing(rig: Rig, engine: Engine) -> None:
    bundle = engine.bundle("c1", "/no/such/program")
    task = await engine.start(bundle)
    options = rig.options(binary_name=engine.binary)
    # crun reports it at create, gVisor at start.
    with pytest.raises(GRPCError, match=r"(?i)no such file|not found|/no/such/program"):
        await rig.run(task, bundle, options=options)
    if engine.name == "runsc":
        await task.Delete(DeleteRequest(id="c1"), timeout=20)
    assert not list(engine.state.glob("c1*"))
    await task.Shutdown(ShutdownRequest(id="c1"), timeout=5)
    await wait_gone(rig.daemons)


async def test_delete_after_the_shim_was_killed_leaves_nothing(rig: Rig, engine: Engine) -> None:
    bundle = engine.bundle("c1", "sleep", "1000")
    _, pid = await engine.run(bundle)
    await kill_daemon(rig)
    for _ in range(2):
        done = await engine.call_shim(bundle, "-bundle", str(bundle), "delete")
        assert done.returncode == 0, done.stderr
        reply = DeleteResponse.FromString(done.stdout)
        assert (reply.pid, reply.exit_status) == (pid, 137)
    await wait_gone([pid])
    assert not list(engine.state.glob("c1*"))


async def test_a_second_delete_finds_the_container_gone_and_is_content(
    rig: Rig, engine: Engine
) -> None:
    """The action ran beside the daemon: its own Delete must not fail for that."""
    bundle = engine.bundle("c1", "sleep", "1000")
    task, _ = await engine.run(bundle)
    await engine.call_shim(bundle, "-bundle", str(bundle), "delete")
    assert (await task.Wait(WaitRequest(id="c1"), timeout=20)).exit_status == 137
    await task.Delete(DeleteRequest(id="c1"), timeout=20)
    await task.Shutdown(ShutdownRequest(id="c1"), timeout=5)
    await wait_gone(rig.daemons)


@pytest.mark.parametrize("dress", ["runc options", "TOML"])
async def test_info_has_the_features_of_a_runtime_that_tells_them(
    engine: Engine, dress: str
) -> None:
    # gVisor and older cruns report none, which is valid, too.
    told = subprocess.run([engine.binary, "features"], capture_output=True, check=False)
    options = engine.toml() if dress == "TOML" else engine.rig.options(binary_name=engine.binary)
    done = engine.run_shim(engine.rig.root, "-info", stdin=options.SerializeToString())
    assert done.returncode == 0, done.stderr
    info = RuntimeInfo.FromString(done.stdout)
    assert info.options == options
    assert info.HasField("features") == (told.returncode == 0)
    assert json.loads(info.features.value or b"0") == json.loads(
        told.stdout if told.returncode == 0 else b"0"
    )


async def test_gvisor_without_its_wrapper_fails_and_leaves_nothing(rig: Rig) -> None:
    runsc = find("runsc")
    engine = Engine(rig, "runsc", runsc)
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await engine.start(bundle)
    try:
        with pytest.raises(GRPCError) as caught:
            await rig.run(task, bundle, options=rig.options(binary_name=runsc))
        failed = caught.value.message or ""
        assert failed.startswith("OCI runtime ")
        if "start failed" in failed:
            # It was created, and managers delete a container that they could not start.
            state = await task.State(StateRequest(id="c1"), timeout=5)
            assert state.status in (process_pb2.CREATED, process_pb2.STOPPED)
            await task.Delete(DeleteRequest(id="c1"), timeout=20)
        assert not list(engine.state.glob("c1*"))
        assert not processes_of(runsc)
        # The id is free, and the shim as good as new.
        wrapped = Engine.open(rig, "runsc")
        await rig.run(task, bundle, options=rig.options(binary_name=wrapped.binary))
        await task.Kill(KillRequest(id="c1", signal=9), timeout=10)
        assert (await task.Wait(WaitRequest(id="c1"), timeout=20)).exit_status == 137
        await task.Delete(DeleteRequest(id="c1"), timeout=20)
    finally:
        engine.end()


def processes_of(binary: str) -> list[int]:
    """Find the processes of ``binary`` that have to do with a container of the tests."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "exe").samefile(binary):
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if alive(pid)]
