"""``start``: its answer, and the attributes of the daemon."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.bootstrap_pb2 import BootstrapParams, BootstrapResult
from shim.api.introspection_pb2 import RuntimeInfo
from shim.api.task_grpc import TaskStub
from shim.api.task_pb2 import (
    ConnectRequest,
    ConnectResponse,
    CreateTaskRequest,
    KillRequest,
    ShutdownRequest,
    StateRequest,
    WaitRequest,
)
from shim.linux.sockets import can_connect, connect, socket_path
from shim.ttrpc.client import UnaryUnaryMethod, open_channel
from tests.e2e.waiting import PATIENCE
from tests.openfiles import open_files, wait_no_more_files
from tests.process.rig import NAMESPACE, SHIM, Rig, alive, wait_gone
from tests.process.steps import kill_daemon

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.servers import Server

pytestmark = pytest.mark.cold


def grouped(name: str, value: str) -> Callable[[dict[str, Any]], object]:
    return lambda config: config.setdefault("annotations", {}).update({name: value})


async def test_a_legacy_caller_gets_the_plain_address_containerd_computes(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true")
    await rig.start(bundle)
    key = f"{rig.root}/manager/{NAMESPACE}/c1"
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert rig.address == f"unix:///run/containerd/s/{digest}"
    assert (bundle / "address").read_text() == rig.address
    assert os.stat(socket_path(rig.address)).st_mode & 0o777 == 0o600  # noqa: PTH116


async def test_a_modern_caller_gets_a_protobuf_of_version_3(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true")
    params = BootstrapParams(instance_id="c1", namespace=NAMESPACE, socket_dir=str(rig.root / "s"))
    done = rig.run_shim(bundle, "-id", "c1", "start", stdin=params.SerializeToString())
    answer = BootstrapResult.FromString(done.stdout)
    assert (answer.version, answer.protocol) == (3, "ttrpc")
    assert answer.address.startswith(f"unix://{rig.root}/s/")
    rig.address = answer.address
    await rig.connect()


async def test_task_v2_and_v3_are_served_on_one_socket(rig: Rig) -> None:
    await rig.start(rig.bundle("c1", "true"))
    async with await connect(rig.address) as stream, open_channel(stream) as channel:
        for version in ("v2", "v3"):
            method = UnaryUnaryMethod(
                channel,
                f"/containerd.task.{version}.Task/Connect",
                ConnectRequest,
                ConnectResponse,
            )
            reply = await method(ConnectRequest(), timeout=5)
            assert reply.shim_pid == rig.daemons[0]
        unknown = UnaryUnaryMethod(
            channel, "/containerd.task.v4.Task/Connect", ConnectRequest, ConnectResponse
        )
        with pytest.raises(GRPCError) as caught:
            await unknown(ConnectRequest(), timeout=5)
        assert caught.value.status is Status.UNIMPLEMENTED


async def test_the_daemon_inherits_nothing_and_stands_alone(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true")
    os.mkfifo(bundle / "log")
    # Something a careless manager leaves open.
    stray = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(stray, True)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        done = rig.run_shim(bundle, "-id", "c1", "-debug", "start")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(stray)
    rig.address = rig.answer(done.stdout)
    await rig.connect()
    pid = rig.daemons[0]
    links = {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}  # noqa: PTH115
    assert links[0] == links[1] == "/dev/null"
    assert links[2] == str(bundle / "log")
    assert links[3].startswith("socket:")
    assert "/etc/passwd" not in links.values()
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"  # noqa: PTH115
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    assert status["Threads"] == "1"
    assert int(status["SigBlk"], 16) == 1 << signal.SIGCHLD - 1  # it reads this one from an fd
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    assert b"start" not in words
    assert words[1:5] == [b"-namespace", NAMESPACE.encode(), b"-id", b"c1"]


@pytest.mark.slow
async def test_a_daemon_that_does_not_serve_in_time_is_killed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIO_SHIM_FORKSERVER", "off")
    bundle = rig.bundle("c1", "true")
    (bundle / "config.json").unlink()
    os.mkfifo(bundle / "config.json")  # the daemon waits for a writer
    done = rig.run_shim(bundle, "-id", "c1", "start", timeout=15)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"no answer within 10 s" in done.stderr
    # Its working directory is the bundle until it serves.
    assert not [one for one in Path("/proc").glob("[0-9]*/cwd") if one.resolve() == bundle]


async def test_start_returns_though_its_output_is_read_to_the_end(rig: Rig) -> None:
    """A daemon that kept the pipe would block the manager without end: run_shim reads to EOF."""
    with trio.fail_after(20):
        await rig.start(rig.bundle("c1", "true"))


async def test_the_oom_score_is_the_managers_plus_one(rig: Rig) -> None:
    await rig.start(rig.bundle("c1", "true"))
    ours = int(Path("/proc/self/oom_score_adj").read_text())
    theirs = int(Path(f"/proc/{rig.daemons[0]}/oom_score_adj").read_text())
    assert theirs == min(ours + 1, 1000)


@pytest.mark.parametrize(
    "annotation",
    [
        "io.containerd.runc.v2.group",
        "io.kubernetes.cri.sandbox-id",
        "io.kubernetes.cri-o.SandboxID",
    ],
)
async def test_a_pods_containers_share_one_shim(rig: Rig, annotation: str) -> None:
    change = grouped(annotation, "pod1")
    first = rig.bundle("c1", "sleep", "1000", change=change)
    second = rig.bundle("c2", "sleep", "1000", change=change)
    other = rig.bundle("c3", "true")
    task = await rig.start(first)
    address = rig.address
    await rig.run(task, first)
    task = await rig.start(second)
    assert rig.address == address
    assert (second / "address").read_text() == address
    await rig.run(task, second)
    await task.Shutdown(ShutdownRequest(), timeout=5)
    for id_ in ("c1", "c2"):
        assert (await task.State(StateRequest(id=id_), timeout=5)).id == id_
    await rig.start(other)
    assert rig.address != address
    assert len(rig.daemons) == 2


async def test_racing_starters_of_a_pod_end_with_one_daemon(rig: Rig) -> None:
    change = grouped("io.kubernetes.cri.sandbox-id", "pod1")
    bundles = [rig.bundle(f"c{i}", "true", change=change) for i in range(8)]
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            for bundle in bundles:
                nursery.start_soon(rig.start, bundle)
        assert len(rig.daemons) == 1
        task = await rig.connect()
        await task.Shutdown(ShutdownRequest(), timeout=5)
        await wait_gone(rig.daemons)
        rig.daemons.clear()


async def test_a_socket_left_by_a_dead_shim_is_taken_over(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true")
    await rig.start(bundle)
    await kill_daemon(rig)
    assert os.path.exists(socket_path(rig.address))  # noqa: PTH110
    await rig.start(bundle)
    assert len(rig.daemons) == 2


async def test_joining_a_shim_of_another_make_answers_with_what_it_speaks(rig: Rig) -> None:
    change = grouped("io.containerd.runc.v2.group", "pod1")
    first = rig.bundle("c1", "true", change=change)
    os.mkfifo(first / "log")
    keep = os.open(first / "log", os.O_RDWR)
    flags = ["-namespace", NAMESPACE, "-address", str(rig.root / "manager")]
    go = await trio.run_process(
        ["containerd-shim-runc-v2", *flags, "-id", "c1", "start"],
        cwd=first,
        capture_stdout=True,
    )
    rig.address = go.stdout.decode()
    try:
        second = rig.bundle("c2", "true", change=change)
        params = BootstrapParams(instance_id="c2", namespace=NAMESPACE)
        done = rig.run_shim(second, "-id", "c2", "start", stdin=params.SerializeToString())
        answer = BootstrapResult.FromString(done.stdout)
        # Debian 12's shim knows Task v2 only.
        assert (answer.address, answer.version) == (rig.address, 2)
    finally:
        os.close(keep)
        await trio.run_process(["pkill", "-f", f"containerd-shim-runc-v2.*{rig.root}/manager"])


@pytest.mark.parametrize("way", [shutil.copy, os.symlink])
async def test_the_executable_works_under_any_name(rig: Rig, way: Callable[..., Any]) -> None:
    installed = Path(sys.executable).parent / "containerd-shim-trio-v2"
    alias = rig.root / "containerd-shim-runc-v2"
    way(installed, alias)
    done = subprocess.run([alias, "-v"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("containerd-shim-runc-v2:\n  Version:")
    bundle = rig.bundle("c1", "true")
    flags = ["-namespace", NAMESPACE, "-address", str(rig.root / "manager"), "-id", "c1"]
    done = subprocess.run(
        [alias, *flags, "start"],
        capture_output=True,
        text=True,
        cwd=bundle,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    rig.address = done.stdout
    await rig.connect()
    assert Path(f"/proc/{rig.daemons[0]}/comm").read_text().strip() == "containerd-shim"


@pytest.mark.parametrize("flag", ["-v", "-version", "--version"])
def test_the_version_is_told(flag: str) -> None:
    done = subprocess.run([*SHIM, flag], capture_output=True, text=True, check=True)
    assert "Version:  0." in done.stdout


def test_info_tells_the_runtimes_features() -> None:
    done = subprocess.run(
        [*SHIM, "-info"], capture_output=True, check=True, stdin=subprocess.DEVNULL
    )
    info = RuntimeInfo.FromString(done.stdout)
    assert info.name == "io.containerd.trio.v2"
    assert info.features.type_url == (
        "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
    )
    assert "overlay" not in json.loads(info.features.value)  # it is JSON, and an object


async def test_the_log_goes_to_the_managers_fifo_and_never_blocks(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true")
    os.mkfifo(bundle / "log")
    keep = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    try:
        task = await rig.start(bundle)
        assert b"msg=serving id=c1" in os.read(keep, 65536)
        await task.Create(CreateTaskRequest(id="x", bundle=str(bundle), options=rig.options()))
        # Each refusal logs a line; the fifo has no reader, and its 64 KiB are full long before
        # the end.
        with trio.fail_after(30):
            for _ in range(2000):
                await task.Shutdown(ShutdownRequest())
        assert len(os.read(keep, 1 << 20)) > 60_000
        await task.State(StateRequest(id="x"), timeout=5)
    finally:
        os.close(keep)


async def test_sigterm_ends_the_shim_and_no_container(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    created = await rig.run(task, bundle)
    os.kill(rig.daemons[0], signal.SIGTERM)
    await wait_gone(rig.daemons, 5)
    assert alive(created.pid)
    assert not can_connect(rig.address)
    assert not os.path.exists(socket_path(rig.address))  # noqa: PTH110


async def test_sigusr1_dumps_the_stack_into_the_log_and_nothing_else(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    os.mkfifo(bundle / "log")
    keep = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    try:
        task = await rig.start(bundle)
        os.kill(rig.daemons[0], signal.SIGUSR1)
        text = b""
        with trio.fail_after(5 * PATIENCE):
            while b"most recent call first" not in text:
                await trio.lowlevel.wait_readable(keep)
                text += os.read(keep, 65536)
        await task.Connect(ConnectRequest(), timeout=5)
    finally:
        os.close(keep)


async def test_a_manager_that_goes_away_ends_its_waits_and_nothing_else(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    before = open_files(rig.daemons[0])
    for _ in range(20):
        async with await connect(rig.address) as stream, open_channel(stream) as channel:
            with trio.move_on_after(0.01):
                await TaskStub(channel).Wait(WaitRequest(id="c1"))
    await wait_no_more_files(rig.daemons[0], before)
    await task.Kill(KillRequest(id="c1", signal=15), timeout=5)


async def test_a_manager_that_systemd_runs_waits_for_no_container(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NOTIFY_SOCKET is the manager's: with it, runc start waits for READY=1 from the container."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(rig.root / "notify"))
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    assert alive((await task.State(StateRequest(id="c1"), timeout=5)).pid)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRIO_SHIM_FORKSERVER", "maybe"),
        ("TRIO_SHIM_FORKSERVER_DIR", "relative/path"),
        ("TRIO_SHIM_FORKSERVER_DIR", "/" + "x" * 100),
        ("TRIO_SHIM_FORKSERVER_IDLE", "soon"),
        ("TRIO_SHIM_FORKSERVER_IDLE", "-1"),
        ("TRIO_SHIM_FORKSERVER_IDLE", "nan"),
    ],
)
async def test_a_variable_with_a_senseless_value_is_named_in_the_log_of_the_shim(
    server: Server, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    if name == "TRIO_SHIM_FORKSERVER_DIR":  # none is to be left in the default directory
        monkeypatch.setenv("TRIO_SHIM_FORKSERVER", "off")
    monkeypatch.setenv(name, value)
    rig = server.rig
    bundle = rig.bundle("c1", "true")
    os.mkfifo(bundle / "log")
    keep = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    try:
        await rig.start(bundle)
        said = os.read(keep, 65536).decode()
    finally:
        os.close(keep)
    assert f"{name} must be " in said
    assert value[:20] in said
