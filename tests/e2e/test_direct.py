"""What ctr has no command for, asked of the shim itself beside its containerd."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.task_pb2 import (
    ConnectRequest,
    ConnectResponse,
    DeleteRequest,
    DeleteResponse,
    KillRequest,
    UpdateTaskRequest,
)
from shim.linux.sockets import connect
from shim.ttrpc.client import Channel, UnaryUnaryMethod, open_channel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.ctr import Ctr

pytestmark = pytest.mark.e2e
SCENARIO = "What the shim answers itself"
TASK = "/containerd.task.v2.Task/"  # served beside v3 to every manager
RESOURCES = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


@asynccontextmanager
async def open_shim(ctr: Ctr, container: str) -> AsyncIterator[Channel]:
    address = (ctr.containerd.bundle(container) / "address").read_text()
    metadata = {"containerd-namespace-ttrpc": ctr.containerd.namespace}
    async with open_channel(await connect(address), metadata) as channel:
        yield channel


async def test_a_limit_is_updated_while_the_container_runs(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000", flags=("--memory-limit", str(64 << 20)))
    resources = json.dumps({"memory": {"limit": 96 << 20}}).encode()
    request = UpdateTaskRequest(id=name, resources=Any(type_url=RESOURCES, value=resources))
    async with open_shim(ctr, name) as channel:
        await UnaryUnaryMethod(channel, TASK + "Update", UpdateTaskRequest, Empty)(
            request, timeout=20
        )
    assert memory_limit(ctr, name) == 96 << 20


def test_the_manager_speaks_the_version_it_was_answered(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000")
    bundle, manager = ctr.containerd.bundle(name), ctr.containerd.manager
    address = (bundle / "address").read_text()
    assert address.startswith("unix:///")
    if manager.version >= (2,):  # an older one keeps the address alone
        kept = json.loads((bundle / "bootstrap.json").read_text())
        version = 3 if manager.modern else 2
        assert kept == {"version": version, "address": address, "protocol": "ttrpc"}


async def test_connect_tells_the_pids(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000")
    async with open_shim(ctr, name) as channel:
        method = UnaryUnaryMethod(channel, TASK + "Connect", ConnectRequest, ConnectResponse)
        reply = await method(ConnectRequest(id=name), timeout=20)
    assert reply.task_pid == ctr.pid(name)
    assert Path(f"/proc/{reply.shim_pid}/cmdline").exists()


async def test_refusals_have_the_statuses_that_containerd_maps(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000")
    async with open_shim(ctr, name) as channel:
        kill = UnaryUnaryMethod(channel, TASK + "Kill", KillRequest, Empty)
        delete = UnaryUnaryMethod(channel, TASK + "Delete", DeleteRequest, DeleteResponse)
        with pytest.raises(GRPCError) as caught:
            await kill(KillRequest(id=name, exec_id="nobody", signal=9), timeout=20)
        assert caught.value.status is Status.NOT_FOUND
        with pytest.raises(GRPCError):
            await delete(DeleteRequest(id=name), timeout=20)
        nothing = UnaryUnaryMethod(channel, TASK + "Nothing", KillRequest, Empty)
        with pytest.raises(GRPCError) as caught:
            await nothing(KillRequest(id=name), timeout=20)
        assert caught.value.status is Status.UNIMPLEMENTED
    assert ctr.state(name) == "RUNNING"


async def test_killing_the_dead_has_the_status_not_found(ctr: Ctr) -> None:
    name = ctr.start("true")
    ctr.wait_state(name, "STOPPED")
    async with open_shim(ctr, name) as channel:
        kill = UnaryUnaryMethod(channel, TASK + "Kill", KillRequest, Empty)
        with pytest.raises(GRPCError) as caught:
            await kill(KillRequest(id=name, signal=15), timeout=20)
    assert caught.value.status is Status.NOT_FOUND
    assert ctr.delete(name) == 0


def memory_limit(ctr: Ctr, container: str) -> int:
    place = f"{ctr.containerd.namespace}/{container}"
    v1 = Path("/sys/fs/cgroup/memory") / place / "memory.limit_in_bytes"
    v2 = Path("/sys/fs/cgroup") / place / "memory.max"
    return int((v1 if v1.exists() else v2).read_text())
