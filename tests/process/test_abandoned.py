"""``delete`` after the worst: no daemon, and a container, mounts or a runtime in any state."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from shim.api.task_pb2 import (
    DeleteRequest,
    DeleteResponse,
    KillRequest,
    PauseRequest,
    StartRequest,
    StateRequest,
    WaitRequest,
)
from shim.cgroup.find import cgroup_of
from shim.cgroup.v1 import CgroupV1
from shim.linux.libc import mount
from shim.linux.mountinfo import mount_points
from shim.linux.sockets import can_connect
from tests.e2e.waiting import wait_until
from tests.process.configs import overlay, own_rootfs
from tests.process.rig import NAMESPACE, SHIM, Rig, alive, wait_gone
from tests.process.servers import children_of
from tests.process.steps import kill_daemon
from tests.process.test_delete import MS_BIND, delete

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shim.api.task_grpc import TaskStub
    from shim.cgroup.find import Cgroup

FREEZER = Path("/sys/fs/cgroup/freezer")


def state_of(rig: Rig, id_: str) -> Path:
    return rig.runc_root / NAMESPACE / id_


async def end_init(rig: Rig, task: TaskStub, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    await task.Wait(WaitRequest(id="c1"), timeout=10)


async def pause(rig: Rig, task: TaskStub, pid: int) -> None:
    await task.Pause(PauseRequest(id="c1"), timeout=10)


async def forget(rig: Rig, task: TaskStub, pid: int) -> None:
    shutil.rmtree(state_of(rig, "c1"))


async def spoil(rig: Rig, task: TaskStub, pid: int) -> None:
    (state_of(rig, "c1") / "state.json").write_text("{")


async def leave(rig: Rig, task: TaskStub, pid: int) -> None:
    pass


def remove_group(cgroup: Cgroup) -> None:
    if isinstance(cgroup, CgroupV1):
        directories = set(cgroup.directories.values())
    else:
        directories = {cgroup.directory}
    for directory in directories:
        with suppress(FileNotFoundError):
            Path(directory).rmdir()


@pytest.mark.parametrize(
    ("fate", "started"),
    [
        (leave, True),
        (leave, False),
        (end_init, True),
        (end_init, False),
        (pause, True),
        (forget, True),
        (spoil, True),
    ],
)
async def test_whatever_state_the_container_is_in_it_is_gone(
    rig: Rig, fate: Any, started: bool
) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    created = await task.Create(rig.create_request(bundle), timeout=20)
    cgroup = cgroup_of(created.pid)
    if started:
        await task.Start(StartRequest(id="c1"), timeout=20)
    await fate(rig, task, created.pid)
    await kill_daemon(rig)
    for _ in range(2):
        reply = await delete(rig, bundle)
        assert (reply.pid, reply.exit_status) == (created.pid, 137)
        assert not alive(created.pid)
    assert not (state_of(rig, "c1") / "state.json").exists() or fate is spoil
    shutil.rmtree(rig.runc_root)
    remove_group(cgroup)  # which a runtime that has lost its state does not find


async def test_a_runtime_that_hangs_keeps_nothing_alive(rig: Rig) -> None:
    flag = rig.root / "hang"
    wrapper = rig.wrapper("hanging", f'[ -e {flag} ] && exec sleep 1000\nexec runc "$@"')
    bundle = rig.bundle("c1", "sleep", "1000", change=own_rootfs)
    task = await rig.start(bundle)
    options = rig.options(binary_name=wrapper)
    created = await rig.run(task, bundle, options=options, rootfs=[overlay(rig)])
    await kill_daemon(rig)
    flag.touch()
    reply = await delete(rig, bundle)
    assert (reply.pid, reply.exit_status) == (created.pid, 137)
    assert not alive(created.pid)
    assert not [m for m in mount_points() if m.startswith(str(bundle))]
    # Once the runtime works again, the remains are deleted, too.
    flag.unlink()
    assert (await delete(rig, bundle)).pid == created.pid
    assert not state_of(rig, "c1").exists()


@pytest.mark.cold  # the child is that of the process that is killed
async def test_a_delete_that_is_killed_is_not_carried_on_by_its_child(rig: Rig) -> None:
    began = rig.root / "began"
    flag = rig.root / "hang"
    wrapper = rig.wrapper(
        "hanging", f'[ -e {flag} ] && {{ touch {began}; exec sleep 1000; }}\nexec runc "$@"'
    )
    bundle = rig.bundle("c1", "sleep", "1000")
    task = await rig.start(bundle)
    await rig.run(task, bundle, options=rig.options(binary_name=wrapper))
    await kill_daemon(rig)
    flag.touch()
    with subprocess.Popen(  # noqa: ASYNC220 - it is killed while it works
        [*SHIM, "-namespace", NAMESPACE, "-id", "c1", "delete"],
        cwd=bundle,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
    ) as asked:
        wait_until("the runtime runs", began.exists)
        (child,) = children_of(asked.pid)
        asked.kill()
    await wait_gone([child], 2)
    flag.unlink()
    await delete(rig, bundle)


async def test_a_runtime_that_cannot_even_be_killed_does_not_hold_the_answer(rig: Rig) -> None:
    """A process in a frozen cgroup of version 1 stands for one that waits for a dead disk."""
    if not (FREEZER / "cgroup.procs").exists():
        pytest.skip("needs the freezer of cgroup version 1")
    with frozen_group(rig) as group:
        flag = rig.root / "stick"
        stick = f"echo $$ > {group}/cgroup.procs; echo FROZEN > {group}/freezer.state"
        wrapper = rig.wrapper("stuck", f'[ -e {flag} ] && {{ {stick}; }}\nexec runc "$@"')
        bundle = rig.bundle("c1", "sleep", "1000")
        task = await rig.start(bundle)
        created = await rig.run(task, bundle, options=rig.options(binary_name=wrapper))
        await kill_daemon(rig)
        flag.touch()
        assert (await delete(rig, bundle)).pid == created.pid
        assert not alive(created.pid)


@contextmanager
def sleeper(cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"], cwd=cwd) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def frozen_group(rig: Rig) -> Iterator[Path]:
    group = FREEZER / f"trio-shim-test-{rig.root.name}"
    group.mkdir()
    try:
        yield group
    finally:
        pids = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        (group / "freezer.state").write_text("THAWED")
        wait_until("the group is empty", lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


async def test_in_the_hosts_pid_namespace_the_children_die_too(rig: Rig) -> None:
    def host_pids(config: dict[str, Any]) -> None:
        namespaces = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [ns for ns in namespaces if ns["type"] != "pid"]

    flag = rig.root / "hang"
    wrapper = rig.wrapper("hanging", f'[ -e {flag} ] && exec sleep 1000\nexec runc "$@"')
    bundle = rig.bundle("c1", "sh", "-c", "sleep 1000 & exec sleep 1000", change=host_pids)
    task = await rig.start(bundle)
    created = await rig.run(task, bundle, options=rig.options(binary_name=wrapper))
    cgroup = cgroup_of(created.pid)
    with trio.fail_after(10):
        while len(cgroup.pids()) < 2:
            await trio.sleep(0.01)
    pids = cgroup.pids()
    await kill_daemon(rig)
    flag.touch()
    await delete(rig, bundle)
    await wait_gone(pids, 5)
    flag.unlink()
    await delete(rig, bundle)


async def test_a_pid_that_is_somebody_elses_by_now_is_left_alone(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000")
    with sleeper(bundle) as stranger:
        (bundle / "init.pid").write_text(str(stranger.pid))
        assert (await delete(rig, bundle)).pid == stranger.pid
        assert stranger.poll() is None


async def test_mounts_of_every_kind_are_undone_though_they_are_busy(rig: Rig) -> None:
    bundle = rig.bundle("c1", "true")
    rootfs = bundle / "rootfs"
    rootfs.mkdir()
    source = rig.root / "source"
    (source / "below").mkdir(parents=True)
    (source / "kept").write_text("kept")
    try:
        mount("none", str(rootfs), "tmpfs", 0)
        mount(str(source), str(rootfs), "", MS_BIND)
        mount("none", str(rootfs / "below"), "tmpfs", 0)
        layers = overlay(rig)
        mount("overlay", str(rootfs), "overlay", 0, ",".join(layers.options))
        (rootfs / "deep").mkdir()
        mount("none", str(rootfs / "deep"), "tmpfs", 0)
        with sleeper(rootfs / "deep") as holder:
            for _ in range(2):
                await delete(rig, bundle)
                assert not [m for m in mount_points() if m.startswith(str(bundle))]
            assert holder.poll() is None
    finally:
        await delete(rig, bundle)
    assert (source / "kept").read_text() == "kept"


async def test_many_at_once_say_the_same(rig: Rig) -> None:
    bundle = rig.bundle("c1", "sleep", "1000", change=own_rootfs)
    task = await rig.start(bundle)
    created = await rig.run(task, bundle, rootfs=[overlay(rig)])
    await kill_daemon(rig)
    replies: list[DeleteResponse] = []

    async def one() -> None:
        args = ("-id", "c1", "-bundle", str(bundle), "delete")
        done = await trio.to_thread.run_sync(rig.run_shim, bundle, *args)
        assert done.returncode == 0, done.stderr
        replies.append(DeleteResponse.FromString(done.stdout))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(one)
    assert {(reply.pid, reply.exit_status) for reply in replies} == {(created.pid, 137)}
    assert not alive(created.pid)
    assert not state_of(rig, "c1").exists()
    assert not [m for m in mount_points() if m.startswith(str(bundle))]


async def test_beside_a_living_daemon_it_ends_one_container_and_no_other(rig: Rig) -> None:
    def pod(config: dict[str, Any]) -> None:
        config["annotations"] = {"io.kubernetes.cri.sandbox-id": "pod1"}

    bundles = [rig.bundle(id_, "sleep", "1000", change=pod) for id_ in ("c1", "c2")]
    for bundle in bundles:
        task = await rig.start(bundle)
    created = [await rig.run(task, bundle) for bundle in bundles]
    for _ in range(2):
        assert (await delete(rig, bundles[0])).pid == created[0].pid
    assert (await task.Wait(WaitRequest(id="c1"), timeout=10)).exit_status == 137
    await rig.sink.wait_for("exit c1", "c1")
    assert alive(created[1].pid)
    assert can_connect(rig.address)
    # The manager that comes after it finds the daemon in order.
    deleted = await task.Delete(DeleteRequest(id="c1"), timeout=10)
    assert (deleted.pid, deleted.exit_status) == (created[0].pid, 137)
    assert (await task.State(StateRequest(id="c2"), timeout=5)).pid == created[1].pid
    await task.Kill(KillRequest(id="c2", signal=9), timeout=5)
    assert (await task.Wait(WaitRequest(id="c2"), timeout=10)).exit_status == 137
    await rig.sink.wait_for("exit c2", "c2")
    assert rig.sink.names("c1") == ["create", "start", "exit c1", "delete"]


@pytest.mark.parametrize("way", ["directory", "flag", "both"])
async def test_a_bundle_that_is_not_called_as_its_container_is_found(rig: Rig, way: str) -> None:
    bundle = rig.bundle("b1", "sleep", "1000")
    done = rig.run_shim(bundle, "-id", "c1", "start")
    rig.address = rig.answer(done.stdout)
    task = await rig.connect()
    created = await task.Create(rig.create_request(bundle, id="c1"), timeout=20)
    await kill_daemon(rig)
    flags = [] if way == "directory" else ["-bundle", str(bundle)]
    where = rig.root if way == "flag" else bundle
    done = await rig.call_shim(where, "-id", "c1", *flags, "delete")
    assert DeleteResponse.FromString(done.stdout).pid == created.pid
    assert not alive(created.pid)


def test_without_a_bundle_there_is_an_answer_too(tmp_path: Path) -> None:
    executable = Path(sys.executable).parent / "containerd-shim-trio-v2"
    gone = tmp_path / "gone"
    gone.mkdir()
    flags = f"-namespace {NAMESPACE} -id c1 -bundle {gone}"
    done = subprocess.run(
        ["sh", "-c", f"rmdir {gone}; exec {executable} {flags} delete"],
        cwd=gone,
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    reply = DeleteResponse.FromString(done.stdout)
    assert (reply.pid, reply.exit_status) == (0, 137)
