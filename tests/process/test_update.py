"""Update: every resource that runc accepts reaches the kernel's file, and a refused one changes
nothing.

The figures are read where the kernel keeps them, not from a runtime's state.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.cgroups_v1_pb2 import Metrics
from shim.api.task_pb2 import (
    DeleteRequest,
    KillRequest,
    PauseRequest,
    ResumeRequest,
    StartRequest,
    StateRequest,
    StatsRequest,
    UpdateTaskRequest,
    WaitRequest,
)
from shim.cgroup.find import cgroup_of
from shim.cgroup.v1 import CgroupV1
from tests.openfiles import open_files, wait_no_more_files
from tests.process.recorder import record
from tests.process.rig import RESOURCES_URL, Rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shim.api.task_grpc import TaskStub

pytestmark = pytest.mark.e2e
MEBI = 1 << 20


class Updated:
    """A running container, the files of its cgroups, and a way to change them."""

    def __init__(self, task: TaskStub, pid: int) -> None:
        self.task = task
        self.pid = pid
        cgroup = cgroup_of(pid)
        if not isinstance(cgroup, CgroupV1):
            pytest.skip("the names of these files are those of cgroup v1")
        self._directories = cgroup.directories

    def file(self, name: str) -> Path:
        """Return the file ``name``, which begins with its controller's."""
        return Path(self._directories[name.partition(".")[0]], name)

    def read(self, name: str) -> str:
        return self.file(name).read_text().strip()

    async def update(self, resources: object, type_url: str = RESOURCES_URL) -> None:
        await self.update_bytes(json.dumps(resources).encode(), type_url)

    async def update_bytes(self, value: bytes, type_url: str = RESOURCES_URL) -> None:
        request = UpdateTaskRequest(id="c1")
        request.resources.type_url = type_url
        request.resources.value = value
        await self.task.Update(request, timeout=20)

    async def status(self) -> int:
        return (await self.task.State(StateRequest(id="c1"), timeout=5)).status


@pytest.fixture
async def running(rig: Rig) -> AsyncIterator[Updated]:
    """The container, which still runs after the test."""
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    running = Updated(task, (await rig.run(task, bundle)).pid)
    await rig.sink.wait_for("start")  # with that the daemon has all the fds it keeps
    yield running
    assert await running.status() == process_pb2.RUNNING
    await task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    assert (await task.Wait(WaitRequest(id="c1"), timeout=10)).exit_status == 137


async def test_memory(running: Updated) -> None:
    limits = {"limit": 64 * MEBI, "reservation": 32 * MEBI, "swap": 96 * MEBI}
    await running.update({"memory": limits})
    assert running.read("memory.limit_in_bytes") == str(64 * MEBI)
    assert running.read("memory.soft_limit_in_bytes") == str(32 * MEBI)
    assert running.read("memory.memsw.limit_in_bytes") == str(96 * MEBI)


async def test_memory_and_swap_go_up_and_down_together(running: Updated) -> None:
    # The kernel takes no limit above the one with swap: the order of writing matters.
    for mebi in (64, 128, 32):
        await running.update({"memory": {"limit": mebi * MEBI, "swap": mebi * MEBI}})
        assert running.read("memory.limit_in_bytes") == str(mebi * MEBI)
        assert running.read("memory.memsw.limit_in_bytes") == str(mebi * MEBI)
    await running.update({"memory": {"limit": -1, "swap": -1}})
    assert int(running.read("memory.limit_in_bytes")) > 1 << 60


async def test_cpu(running: Updated) -> None:
    cpu = {"shares": 512, "quota": 50_000, "period": 200_000, "cpus": "0", "mems": "0"}
    await running.update({"cpu": cpu})
    assert running.read("cpu.shares") == "512"
    assert running.read("cpu.cfs_quota_us") == "50000"
    assert running.read("cpu.cfs_period_us") == "200000"
    assert running.read("cpuset.cpus") == "0"
    assert running.read("cpuset.mems") == "0"


@pytest.mark.parametrize("missing", ["reservation", "swap", "kernel"])
async def test_a_limit_that_is_null_is_left_as_it_is(running: Updated, missing: str) -> None:
    await running.update({"memory": {"limit": 64 * MEBI, missing: None}, "cpu": {"shares": None}})
    assert running.read("memory.limit_in_bytes") == str(64 * MEBI)


@pytest.mark.parametrize("section", ["memory", "cpu", "pids", "blockIO", "hugepageLimits"])
async def test_a_section_that_is_null_changes_nothing(running: Updated, section: str) -> None:
    await running.update({"pids": {"limit": 78}, section: None})
    assert running.read("pids.max") == ("max" if section == "pids" else "78")


async def test_pids(running: Updated) -> None:
    await running.update({"pids": {"limit": 77}})
    assert running.read("pids.max") == "77"
    await running.update({"pids": {"limit": -1}})
    assert running.read("pids.max") == "max"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("throttleReadBpsDevice", "blkio.throttle.read_bps_device"),
        ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device"),
        ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device"),
        ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device"),
    ],
)
async def test_block_devices(rig: Rig, key: str, name: str) -> None:
    """runc 1.1 does not update them while a container runs: they are set at its creation."""
    device = _disk()
    throttle = {key: [{"major": device[0], "minor": device[1], "rate": 123_456}]}
    bundle = rig.bundle(
        "c1", "sleep", "1000", change=lambda c: c["linux"]["resources"].update(blockIO=throttle)
    )
    task = await rig.start(bundle)
    running = Updated(task, (await rig.run(task, bundle)).pid)
    assert running.read(name) == f"{device[0]}:{device[1]} 123456"


def _disk() -> tuple[int, int]:
    for path in sorted(Path("/sys/class/block").iterdir()):
        if not (path / "partition").exists() and int((path / "size").read_text()):
            major, minor = (path / "dev").read_text().split(":")
            return int(major), int(minor)
    pytest.skip("this machine has no disk to throttle")


# All that runc update reads, whether or not this kernel has it.
EVERYTHING: dict[str, Any] = {
    "memory": {
        "limit": 64 * MEBI,
        "reservation": 32 * MEBI,
        "swap": -1,
        "kernel": 16 * MEBI,
        "kernelTCP": 8 * MEBI,
        "checkBeforeUpdate": True,
    },
    "cpu": {
        "shares": 1024,
        "quota": 1000,
        "burst": 10,
        "period": 5000,
        "idle": 1,
        "realtimeRuntime": 1,
        "realtimePeriod": 2,
        "cpus": "0-1",
        "mems": "0",
    },
    "pids": {"limit": 2**62},
    "blockIO": {"weight": 10, "throttleReadBpsDevice": [{"major": 1, "minor": 2, "rate": 2**63}]},
    "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
    "unified": {"memory.high": "1 \u00e9\n", "cpu.weight": "max"},
    "devices": [{"allow": False, "access": "rwm"}],
    "intelRdt": {"l3CacheSchema": "L3:0=f;1=f0"},
    "rdma": {"mlx5_1": {"hcaHandles": 3}},
    "aKeyOfTomorrow": [None, 1.5, "x" * 100_000],
}


async def test_everything_a_manager_says_reaches_the_runtimes_stdin(rig: Rig) -> None:
    # The result depends on the runtime and the kernel: another one may take more.
    recorder = record(
        rig, 'case " $* " in *" update "*) cat >"$calls/stdin"; exit 0;; esac; exec runc "$@"'
    )
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    options = rig.options(binary_name=recorder.binary)
    running = Updated(task, (await rig.run(task, bundle, options=options)).pid)
    await running.update(EVERYTHING)
    assert json.loads((rig.root / "calls/stdin").read_text()) == EVERYTHING
    argv = recorder.call("update")
    assert argv[argv.index("update") :] == ["update", "--resources", "-", "c1"]


async def test_the_new_limits_are_in_the_metrics(running: Updated) -> None:
    await running.update({"memory": {"limit": 48 * MEBI}, "pids": {"limit": 55}})
    # The kernel counts a task of the runtime until it is released, some time after its exit.
    with trio.fail_after(20):
        while running.read("pids.current") != "1":
            await trio.sleep(0.01)
    reply = await running.task.Stats(StatsRequest(id="c1"), timeout=5)
    metrics = Metrics.FromString(reply.stats.value)
    assert metrics.memory.usage.limit == 48 * MEBI
    assert metrics.pids.limit == 55
    assert metrics.pids.current == 1


async def test_a_created_and_a_paused_container_are_updated_and_stay_what_they_are(
    rig: Rig,
) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    created = await task.Create(rig.create_request(bundle), timeout=20)
    container = Updated(task, created.pid)
    await container.update({"pids": {"limit": 11}})
    assert (container.read("pids.max"), await container.status()) == ("11", process_pb2.CREATED)
    await task.Start(StartRequest(id="c1"), timeout=10)
    await task.Pause(PauseRequest(id="c1"), timeout=10)
    await container.update({"pids": {"limit": 22}})
    assert (container.read("pids.max"), await container.status()) == ("22", process_pb2.PAUSED)
    assert container.read("freezer.state") == "FROZEN"
    await task.Resume(ResumeRequest(id="c1"), timeout=10)
    assert container.read("freezer.state") == "THAWED"


@pytest.mark.parametrize(
    ("value", "type_url"),
    [
        (b"", RESOURCES_URL),
        (b"{", RESOURCES_URL),
        (b"[]", RESOURCES_URL),
        (b"null", RESOURCES_URL),
        (b"\xff\xfe", RESOURCES_URL),
        (b"[" * 100_000, RESOURCES_URL),
        (b"{}", ""),
        (b"{}", "types.containerd.io/opencontainers/runtime-spec/1/WindowsResources"),
        (b"{}", RESOURCES_URL.replace("LinuxResources", "Process")),
    ],
    ids=lambda value: repr(value)[-24:],
)
async def test_what_are_no_resources_is_invalid(
    running: Updated, value: bytes, type_url: str
) -> None:
    with pytest.raises(GRPCError) as caught:
        await running.update_bytes(value, type_url)
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert "\n" not in (caught.value.message or "")


@pytest.mark.parametrize(
    "resources",
    [
        {"memory": {"limit": "lots"}},
        {"pids": {"limit": 2**70}},
        {"cpu": {"quota": 1}},
        {"cpu": {"cpus": "999"}},
        {"memory": {"limit": 4096}},
    ],
    ids=["no number", "too big for the runtime", "too small", "no such cpu", "below the usage"],
)
async def test_what_the_runtime_or_the_kernel_refuses_is_told_in_their_words(
    rig: Rig, running: Updated, resources: dict[str, Any]
) -> None:
    names = ("memory.limit_in_bytes", "pids.max", "cpu.cfs_quota_us", "cpuset.cpus")
    before = [running.read(name) for name in names]
    files = open_files(rig.daemons[0])
    with pytest.raises(GRPCError) as caught:
        await running.update(resources)
    assert caught.value.status is Status.UNKNOWN
    assert (caught.value.message or "").startswith("OCI runtime update failed: ")
    assert [running.read(name) for name in names] == before
    await wait_no_more_files(rig.daemons[0], files)
    await running.update({"pids": {"limit": 33}})
    assert running.read("pids.max") == "33"


async def test_an_ended_container_and_one_that_never_was_are_told_apart(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true")
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    await task.Wait(WaitRequest(id="c1"), timeout=10)
    request = UpdateTaskRequest(id="c1")
    request.resources.type_url = RESOURCES_URL
    request.resources.value = b"{}"
    with pytest.raises(GRPCError) as caught:
        await task.Update(request, timeout=10)
    assert caught.value.status is Status.FAILED_PRECONDITION
    await task.Delete(DeleteRequest(id="c1"), timeout=10)
    with pytest.raises(GRPCError) as caught:
        await task.Update(request, timeout=10)
    assert caught.value.status is Status.NOT_FOUND
