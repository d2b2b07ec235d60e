"""A pod after its shim was killed: the ``delete`` of its first container ends the others too.

Under an answer of version 3 containerd calls no other ``delete``.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.exceptions import GRPCError

from shim.api import process_pb2
from shim.api.bootstrap_pb2 import BootstrapParams
from shim.api.task_pb2 import DeleteRequest, KillRequest, PauseRequest, StateRequest, WaitRequest
from shim.cgroup.find import cgroup_of
from shim.linux.mountinfo import mount_points
from tests.process.configs import host_pids, overlay, own_rootfs
from tests.process.rig import NAMESPACE, Rig, alive
from tests.process.steps import kill_daemon
from tests.process.test_abandoned import sleeper
from tests.process.test_delete import delete

if TYPE_CHECKING:
    from pathlib import Path

    from shim.api.task_grpc import TaskStub


def of_pod(config: dict[str, Any]) -> None:
    config["annotations"] = {"io.kubernetes.cri.sandbox-id": "c1"}


def of_pod_with_host_pids(config: dict[str, Any]) -> None:
    of_pod(config)
    host_pids(config)


def of_pod_with_rootfs(config: dict[str, dict[str, str]]) -> None:
    of_pod(config)
    own_rootfs(config)


@dataclass
class Pod:
    """``first`` is the bundle the shim was started for."""

    rig: Rig
    first: Path
    task: TaskStub

    @classmethod
    async def start(cls, rig: Rig) -> Pod:
        first = rig.bundle("c1", "sleep", "1000", change=of_pod)
        params = BootstrapParams(
            instance_id="c1",
            namespace=NAMESPACE,
            containerd_ttrpc_address=str(rig.root / "events"),
            containerd_grpc_address=str(rig.root / "manager"),
        )
        pod = cls(rig, first, await rig.start(first, params.SerializeToString()))
        await rig.run(pod.task, first)
        return pod

    async def join(
        self, id_: str, *args: str, change: Any = of_pod, **fields: Any
    ) -> tuple[Path, int]:
        """Run a container in the pod; return its bundle and the pid of its init."""
        bundle = self.rig.bundle(id_, *(args or ("sleep", "1000")), change=change)
        return bundle, (await self.rig.run(self.task, bundle, **fields)).pid

    async def kill_shim(self) -> None:
        await kill_daemon(self.rig)

    def notes(self) -> list[str]:
        return sorted(path.name for path in self.first.glob("members/*"))


async def test_every_container_of_the_pod_is_ended_and_nothing_is_left(rig: Rig) -> None:
    pod = await Pod.start(rig)
    mounted, _ = await pod.join("c2", change=of_pod_with_rootfs, rootfs=[overlay(rig)])
    script = "sleep 1000 & exec sleep 1000"
    _, parent = await pod.join("c3", "sh", "-c", script, change=of_pod_with_host_pids)
    paused, _ = await pod.join("c4")
    await pod.task.Pause(PauseRequest(id="c4"), timeout=10)
    created = rig.bundle("c5", "sleep", "1000", change=of_pod)
    await pod.task.Create(rig.create_request(created), timeout=20)
    states = [await pod.task.State(StateRequest(id=f"c{i}"), timeout=5) for i in range(1, 6)]
    group = cgroup_of(parent)
    with trio.fail_after(10):
        while len(group.pids()) < 2:
            await trio.sleep(0.01)
    pids = [*(state.pid for state in states), *group.pids()]
    assert pod.notes() == ["c2", "c3", "c4", "c5"]
    await pod.kill_shim()
    # The manager removes the others' bundles, and does not wait for us.
    shutil.rmtree(paused)
    shutil.rmtree(created)
    for _ in range(2):
        reply = await delete(rig, pod.first)
        assert (reply.pid, reply.exit_status) == (states[0].pid, 137)
        assert not any(map(alive, pids))
        assert not list(rig.runc_root.glob("*/*"))
        assert not [m for m in mount_points() if m.startswith(str(mounted))]
    assert not group.exists()


async def test_a_runtime_that_hangs_keeps_none_of_them_alive(rig: Rig) -> None:
    flag = rig.root / "hang"
    wrapper = rig.wrapper("hanging", f'[ -e {flag} ] && exec sleep 1000\nexec runc "$@"')
    options = rig.options(binary_name=wrapper)
    pod = await Pod.start(rig)
    joined = [await pod.join(id_, options=options) for id_ in ("c2", "c3", "c4")]
    await pod.kill_shim()
    flag.touch()
    await delete(rig, pod.first)
    assert not any(alive(pid) for _, pid in joined)
    assert pod.notes() == ["c2", "c3", "c4"]
    # Once the runtime works again, the remains are deleted, too.
    flag.unlink()
    await delete(rig, pod.first)
    assert not list(rig.runc_root.glob("*/*"))
    assert not pod.notes()


async def test_while_their_shim_serves_them_they_are_left_alone(rig: Rig) -> None:
    pod = await Pod.start(rig)
    _, pid = await pod.join("c2")
    for _ in range(2):
        await delete(rig, pod.first)
    assert (await pod.task.Wait(WaitRequest(id="c1"), timeout=10)).exit_status == 137
    state = await pod.task.State(StateRequest(id="c2"), timeout=5)
    assert (state.pid, state.status) == (pid, process_pb2.RUNNING)
    assert pod.notes() == ["c2"]


async def test_whose_shim_cannot_be_asked_for_they_are_left_alone(rig: Rig) -> None:
    pod = await Pod.start(rig)
    _, pid = await pod.join("c2")
    await pod.kill_shim()
    (pod.first / "address").unlink()
    await delete(rig, pod.first)
    assert alive(pid)


async def test_nothing_is_noted_of_what_was_deleted_or_never_made(rig: Rig) -> None:
    pod = await Pod.start(rig)
    await pod.join("c2")
    await pod.task.Kill(KillRequest(id="c2", signal=9), timeout=5)
    await pod.task.Wait(WaitRequest(id="c2"), timeout=10)
    assert pod.notes() == ["c2"]
    await pod.task.Delete(DeleteRequest(id="c2"), timeout=15)
    with pytest.raises(GRPCError):
        await pod.join("c3", "/no/such/program")
    assert not pod.notes()


async def test_the_first_container_alone_has_no_notes(rig: Rig) -> None:
    pod = await Pod.start(rig)
    assert not (pod.first / "members").exists()


async def test_a_pod_lives_on_without_the_bundle_of_its_first_container(rig: Rig) -> None:
    """A manager that has deleted the first container removes it."""
    pod = await Pod.start(rig)
    await pod.task.Kill(KillRequest(id="c1", signal=9), timeout=5)
    await pod.task.Wait(WaitRequest(id="c1"), timeout=10)
    await pod.task.Delete(DeleteRequest(id="c1"), timeout=15)
    shutil.rmtree(pod.first)
    await pod.join("c2")
    await pod.task.Kill(KillRequest(id="c2", signal=9), timeout=5)
    assert (await pod.task.Wait(WaitRequest(id="c2"), timeout=10)).exit_status == 137
    await pod.task.Delete(DeleteRequest(id="c2"), timeout=15)
    assert not pod.first.exists()


async def test_a_note_that_is_garbage_or_a_strangers_harms_nobody(rig: Rig) -> None:
    pod = await Pod.start(rig)
    _, pid = await pod.join("c2")
    await pod.kill_shim()
    note = json.loads((pod.first / "members/c2").read_text())
    with sleeper(pod.first) as stranger:
        spoilt: dict[str, Any] = {
            "c3": "",
            "c4": "{",
            "c5": json.dumps({**note, "id": "c5", "pid": stranger.pid, "bundle": "/nowhere"}),
            "c6": json.dumps({**note, "id": "c6", "pid": 1 << 70}),
            "c7": json.dumps({**note, "id": "../c7"}),
            "c8": json.dumps({**note, "runtime": {}}),
            "c9": json.dumps(note),
        }
        for name, text in spoilt.items():
            (pod.first / "members" / name).write_text(text)
        (pod.first / "members/cA").mkdir()
        await delete(rig, pod.first)
        assert stranger.poll() is None
    assert not alive(pid)
    assert not list(rig.runc_root.glob("*/*"))
