"""containerd 2.3's way to start a shim, and what still counts as the way before it.

A manager reads stdout and stderr as one, so these tests do.

Source: containerd api/runtime/bootstrap/v1/bootstrap.proto, pkg/shim/compat.go,
core/runtime/v2/binary.go and shim_manager.go.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api import process_pb2
from shim.api.bootstrap_pb2 import (
    LOG_LEVEL_DEBUG,
    LOG_LEVEL_TRACE,
    LOG_LEVEL_WARN,
    BootstrapParams,
    BootstrapResult,
    Extension,
)
from shim.api.options_pb2 import Options
from shim.api.task_pb2 import (
    DeleteRequest,
    KillRequest,
    PidsRequest,
    ShutdownRequest,
    StartRequest,
    StateRequest,
    WaitRequest,
)
from shim.cgroup.files import make_group
from shim.cgroup.find import cgroup_at
from shim.container.cleanup_records import cgroup_names_of
from shim.linux.mountinfo import mount_points
from shim.linux.sockets import SOCKET_DIR, socket_address, socket_path
from tests.process.configs import overlay, own_rootfs
from tests.process.rig import NAMESPACE, SHIM, Rig, wait_gone

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub

# Bytes of stdin that containerd's own shims read.
MOST = 10 << 20


@dataclass
class Caller:
    """A containerd: the flags, the environment and the stdin it gives to ``start``."""

    rig: Rig
    id: str = "c1"
    # A shim that follows the flags and the environment has no receiver for its events.
    ttrpc_address: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.ttrpc_address = str(self.rig.root / "nobody")

    def run(self, bundle: Path, stdin: bytes) -> tuple[int, bytes]:
        """Run ``start``; return its exit status and output."""
        flags = ["-namespace", NAMESPACE, "-address", str(self.rig.root / "manager")]
        flags += ["-publish-binary", "/usr/bin/containerd", "-id", self.id]
        done = subprocess.run(
            [*SHIM, *flags, "start"],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=bundle,
            env={
                **os.environ,
                "MAX_SHIM_VERSION": "2",
                "TTRPC_ADDRESS": self.ttrpc_address,
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
            timeout=20,
            check=False,
        )
        return done.returncode, done.stdout

    async def start(self, bundle: Path, stdin: bytes) -> tuple[TaskStub, bytes]:
        status, answer = await trio.to_thread.run_sync(self.run, bundle, stdin)
        assert status == 0, answer
        self.rig.address = self.rig.answer(answer)
        return await self.rig.connect(), answer

    def params(self, **fields: Any) -> bytes:
        """Return BootstrapParams with the test's address for events."""
        defaults = {
            "instance_id": self.id,
            "namespace": NAMESPACE,
            "containerd_version": "2.3.0",
            "containerd_ttrpc_address": str(self.rig.root / "events"),
            "containerd_grpc_address": str(self.rig.root / "manager"),
            "containerd_binary": "/usr/bin/containerd",
        }
        return BootstrapParams(**{**defaults, **fields}).SerializeToString()


@pytest.fixture
def caller(rig: Rig) -> Caller:
    return Caller(rig)


def any_options(**fields: Any) -> AnyMessage:
    return AnyMessage(
        type_url="containerd.runc.v1.Options", value=Options(**fields).SerializeToString()
    )


async def live(rig: Rig, task: TaskStub, bundle: Path) -> None:
    """A whole life: created, started, entered, ended, deleted."""
    id_ = bundle.name
    await rig.run(task, bundle)
    await task.Exec(rig.exec_request(id_, "e1", "sh", "-c", "exit 3"), timeout=10)
    await task.Start(StartRequest(id=id_, exec_id="e1"), timeout=20)
    waited = await task.Wait(WaitRequest(id=id_, exec_id="e1"), timeout=20)
    assert waited.exit_status == 3
    await task.Delete(DeleteRequest(id=id_, exec_id="e1"), timeout=15)
    await task.Kill(KillRequest(id=id_, signal=9), timeout=5)
    assert (await task.Wait(WaitRequest(id=id_), timeout=20)).exit_status == 137
    assert (await task.Delete(DeleteRequest(id=id_), timeout=15)).exit_status == 137


LIFE = ["create", "start", "exec-added", "exec-started", "exit e1"]


@pytest.mark.parametrize(
    "stdin",
    [
        b"",
        any_options(binary_name="runc").SerializeToString(),
        b"\xff\xfe garbage",
        b"\n\x02c1",  # an Any with the container's id as its type
        BootstrapParams(instance_id="c2", namespace=NAMESPACE).SerializeToString(),
        BootstrapParams(instance_id="c1", namespace="elsewhere").SerializeToString(),
        BootstrapParams(instance_id="c1").SerializeToString(),
    ],
    ids=["empty", "Any", "garbage", "Any of an id", "other id", "other namespace", "no namespace"],
)
async def test_whoever_is_no_containerd_2_3_gets_the_plain_address(
    rig: Rig, caller: Caller, stdin: bytes
) -> None:
    caller.ttrpc_address = str(rig.root / "events")
    bundle = rig.bundle("c1", "sleep", "1000")
    task, answer = await caller.start(bundle, stdin)
    address = socket_address(str(rig.root / "manager"), NAMESPACE, "c1")
    assert answer == address.encode()
    await live(rig, task, bundle)
    await task.Shutdown(ShutdownRequest(id="c1"), timeout=5)
    await wait_gone(rig.daemons)
    assert rig.sink.names("c1") == [*LIFE, "exit c1", "delete"]
    assert not Path(socket_path(address)).exists()


async def test_params_are_followed_where_they_differ_from_flags_and_environment(
    rig: Rig, caller: Caller
) -> None:
    sockets, manager = str(rig.root / "s"), str(rig.root / "other-manager")
    bundle = rig.bundle("c1", "sleep", "1000")
    stdin = caller.params(containerd_grpc_address=manager, socket_dir=sockets)
    task, answer = await caller.start(bundle, stdin)
    result = BootstrapResult.FromString(answer)
    assert (result.version, result.protocol) == (3, "ttrpc")
    assert result.address == socket_address(manager, NAMESPACE, "c1", sockets)
    assert (bundle / "address").read_text() == result.address
    await live(rig, task, bundle)
    await task.Shutdown(ShutdownRequest(id="c1"), timeout=5)
    await wait_gone(rig.daemons)
    assert rig.sink.names("c1") == [*LIFE, "exit c1", "delete"]
    assert not os.listdir(sockets)


async def test_a_pods_other_containers_are_created_without_a_start(
    rig: Rig, caller: Caller
) -> None:
    """containerd keeps the answer for the sandbox, and calls neither start nor delete for them."""

    def pod(config: dict[str, Any]) -> None:
        config["annotations"] = {"io.kubernetes.cri.sandbox-id": "c1"}

    def member(config: dict[str, Any]) -> None:
        pod(config)
        own_rootfs(config)

    sandbox = rig.bundle("c1", "sleep", "1000", change=pod)
    task, _ = await caller.start(sandbox, caller.params())
    (sandbox / "shim-binary-path").write_text("/opt/a-shim")
    await rig.run(task, sandbox)
    members = [rig.bundle("c2", "sleep", "1000", change=member), rig.bundle("c3", "true")]
    # Its own connection for each task object, all to one shim.
    tasks = [await rig.connect() for _ in members]
    assert len(rig.daemons) == 1
    await rig.run(tasks[0], members[0], rootfs=[overlay(rig)])
    await rig.run(tasks[1], members[1])
    assert (await tasks[1].Wait(WaitRequest(id="c3"), timeout=20)).exit_status == 0
    await tasks[1].Delete(DeleteRequest(id="c3"), timeout=15)
    # An older containerd finds the shim by these after a downgrade.
    for member_bundle in members:
        assert (member_bundle / "address").read_text() == rig.address
        assert (member_bundle / "shim-binary-path").read_text() == "/opt/a-shim"
    # A restarted containerd asks any connection about any of them.
    assert (await task.Pids(PidsRequest(id="c2"), timeout=5)).processes
    await tasks[0].Kill(KillRequest(id="c2", signal=9), timeout=5)
    await tasks[0].Wait(WaitRequest(id="c2"), timeout=20)
    await tasks[0].Delete(DeleteRequest(id="c2"), timeout=15)
    # Delete alone has to leave nothing: no program cleans up after it.
    assert not [m for m in mount_points() if m.startswith(str(members[0]))]
    assert not (rig.runc_root / NAMESPACE / "c2").exists()
    state = await task.State(StateRequest(id="c1"), timeout=5)
    assert state.status == process_pb2.RUNNING
    for id_ in ("c2", "c3"):
        await rig.sink.wait_for("delete", id_)
        assert rig.sink.names(id_) == ["create", "start", f"exit {id_}", "delete"]


@pytest.mark.parametrize("modern", [True, False])
async def test_the_options_given_to_start_are_the_shims_own(
    rig: Rig, caller: Caller, modern: bool
) -> None:
    """Its cgroup is all that a shim needs to know before there is a container."""
    path = f"/trio-shim-test/shim-{rig.root.name}"
    options = any_options(shim_cgroup=path)
    prefixed = AnyMessage(type_url=f"types.example/{options.type_url}", value=options.value)
    other = AnyMessage(type_url="some.Other", value=b"\xff")
    extensions = [Extension(value=other), Extension(value=prefixed)]
    stdin = caller.params(extensions=extensions) if modern else options.SerializeToString()
    cgroup = cgroup_at(path)
    for directory in cgroup_names_of(cgroup):
        make_group(f"/{directory}")
    bundle = rig.bundle("c1", "true")
    try:
        task, answer = await caller.start(bundle, stdin)
        assert answer.startswith(b"unix://") is not modern
        assert cgroup.pids() == rig.daemons
        await task.Shutdown(ShutdownRequest(), timeout=5)
        await wait_gone(rig.daemons)
    finally:
        remove_cgroup(path)


@pytest.mark.parametrize(
    ("level", "chatty"),
    [(LOG_LEVEL_TRACE, True), (LOG_LEVEL_DEBUG, True), (0, False), (LOG_LEVEL_WARN, False)],
)
async def test_the_level_of_the_log_is_the_params(
    rig: Rig, caller: Caller, level: int, chatty: bool
) -> None:
    bundle = rig.bundle("c1", "true")
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    try:
        task, _ = await caller.start(bundle, caller.params(log_level=level))
        # One line of each kind: a daemon that serves, and a publisher without a manager.
        await task.Shutdown(ShutdownRequest(), timeout=5)
        await wait_gone(rig.daemons)
        text = b""
        while chunk := read_some(log):
            text += chunk
        assert (b"level=debug" in text) is chatty
    finally:
        os.close(log)


async def test_the_longest_socket_directory_containerd_accepts_is_served(
    rig: Rig, caller: Caller
) -> None:
    """Of 42 bytes, source: containerd core/runtime/v2/socket_linux.go."""
    directory = f"{rig.root}/".ljust(42, "s")
    task, answer = await caller.start(
        rig.bundle("c1", "true"), caller.params(socket_dir=directory)
    )
    path = socket_path(BootstrapResult.FromString(answer).address)
    assert path.startswith(f"{directory}/")
    assert len(path) == 107
    await task.Shutdown(ShutdownRequest(id="c1"), timeout=5)
    await wait_gone(rig.daemons)
    assert not Path(path).exists()


async def test_a_socket_directory_that_is_too_long_is_refused_in_one_line(
    rig: Rig, caller: Caller
) -> None:
    status, said = caller.run(
        rig.bundle("c1", "true"), caller.params(socket_dir="/run/" + "x" * 40)
    )
    assert status == 1
    assert b"42 bytes" in said
    assert said.count(b"\n") == 1


async def test_as_much_stdin_as_containerd_reads_is_read(rig: Rig, caller: Caller) -> None:
    bundle = rig.bundle("c1", "true")
    big = Extension(value=AnyMessage(type_url="some.Other", value=bytes(MOST - 1000)))
    _, answer = await caller.start(bundle, caller.params(extensions=[big]))
    assert BootstrapResult.FromString(answer).version == 3


async def test_more_stdin_than_that_starts_nothing(rig: Rig, caller: Caller) -> None:
    bundle = rig.bundle("c1", "true")
    status, said = caller.run(bundle, bytes(MOST + 1))
    assert status == 1
    assert b"longer than" in said
    assert said.count(b"\n") == 1
    name = Path(socket_path(socket_address(str(rig.root / "manager"), NAMESPACE, "c1"))).name
    assert not Path(SOCKET_DIR, name).exists()
    assert not (bundle / "address").exists()


def read_some(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return b""


def remove_cgroup(path: str) -> None:
    cgroup = cgroup_at(path)
    for directory in cgroup_names_of(cgroup):
        if Path("/", directory).is_dir():
            Path("/", directory).rmdir()
