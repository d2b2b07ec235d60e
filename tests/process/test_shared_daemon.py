"""Containers and pods of one daemon: their ends, events, logs and sockets stay apart."""

from __future__ import annotations

import json
import os
from pathlib import Path

from shim.api.task_pb2 import (
    KillRequest,
    StateRequest,
    WaitRequest,
)
from shim.linux.sockets import can_connect, socket_path
from tests.process.rig import Rig, alive, wait_gone
from tests.process.sharing import (
    kill_daemons,
    launch,
    remove,
    shared,
)
from tests.process.test_delete import delete
from tests.process.test_pods import address_of, params, race


async def test_of_a_dead_daemon_each_delete_ends_its_own_container(rig: Rig) -> None:
    pids = {}
    for id_ in ("c1", "c2", "c3"):
        task, _ = await launch(rig, shared(rig, id_, "sh", "-c", "sleep 1000 & wait"))
        pids[id_] = (await task.State(StateRequest(id=id_), timeout=5)).pid
    await task.Kill(KillRequest(id="c3", signal=15), timeout=5)
    await task.Kill(KillRequest(id="c3", signal=9), timeout=5)
    ended = await task.Wait(WaitRequest(id="c3"), timeout=10)
    await kill_daemons(rig)
    assert (await delete(rig, rig.root / "c2")).pid == pids["c2"]
    assert alive(pids["c1"])
    assert not alive(pids["c2"])
    reply = await delete(rig, rig.root / "c3")
    assert reply.exited_at == ended.exited_at
    assert alive(pids["c1"])
    assert (await delete(rig, rig.root / "c1")).exit_status == 137
    assert not alive(pids["c1"])
    assert not list(rig.runc_root.glob("*/*"))
    assert not can_connect(rig.address)
    assert not Path(socket_path(rig.address)).exists()


async def test_the_bundle_of_the_first_container_is_not_needed(rig: Rig) -> None:
    import shutil

    task, _ = await launch(rig, shared(rig, "c1"))
    await launch(rig, shared(rig, "c2"))
    await remove(task, "c1")
    shutil.rmtree(rig.root / "c1")
    bundle = shared(rig, "c3", "sh", "-c", "exit 7")
    other = await rig.start(bundle)
    await rig.run(other, bundle)
    assert (await other.Wait(WaitRequest(id="c3"), timeout=10)).exit_status == 7
    await rig.sink.wait_for("exit c3")
    assert json.loads((bundle / "init.exit").read_text())["exit_status"] == 7
    pid = (await other.State(StateRequest(id="c2"), timeout=5)).pid
    await kill_daemons(rig)
    assert (await delete(rig, rig.root / "c2")).pid == pid
    assert not alive(pid)
    assert not (rig.root / "c1").exists()


async def test_the_events_of_each_container_are_in_its_own_bundle(rig: Rig) -> None:
    from tests.process.test_durable import away

    with away(rig):
        for id_ in ("c1", "c2"):
            task, _ = await launch(rig, shared(rig, id_, "sh", "-c", "exit 3"))
            await task.Wait(WaitRequest(id=id_), timeout=10)
        await kill_daemons(rig)
        await delete(rig, rig.root / "c2")
    await rig.sink.wait_for("exit c2")
    assert rig.sink.names("c2") == ["create", "start", "exit c2"]
    assert rig.sink.names("c1") == []


async def test_lines_about_a_container_go_to_the_log_of_its_bundle(rig: Rig) -> None:
    fails = 'case "$*" in *--force*) ;; *" delete "*) exit 1;; esac'
    options = rig.options(binary_name=rig.wrapper("fails", f'{fails}\nexec runc "$@"'))
    fds = {}
    try:
        for id_ in ("c1", "c2"):
            bundle = shared(rig, id_)
            os.mkfifo(bundle / "log")
            fds[id_] = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
            task = await rig.start(bundle)
            await rig.run(task, bundle, options=options)
        for id_ in ("c1", "c2"):
            await remove(task, id_)
        read = {id_: os.read(fd, 1 << 16).decode() for id_, fd in fds.items()}
        for id_, other in (("c1", "c2"), ("c2", "c1")):
            assert f'trying with --force" id={id_}' in read[id_]
            assert f'--force" id={other}' not in read[id_]
    finally:
        for fd in fds.values():
            os.close(fd)


async def test_pods_share_a_daemon_and_stay_together(rig: Rig) -> None:
    found = set()
    for pod in ("p1", "p2"):
        for id_ in (pod, f"{pod}a"):
            task, pid = await launch(rig, shared(rig, id_, pod=pod))
            assert rig.address == address_of(rig, pod)
            found.add(pid)
    assert len(found) == 1
    for id_ in ("p1a", "p1"):
        assert can_connect(address_of(rig, "p1"))
        await remove(task, id_)
    assert not Path(socket_path(address_of(rig, "p1"))).exists()
    assert can_connect(address_of(rig, "p2"))
    for id_ in ("p2a", "p2"):
        await remove(task, id_)
    await wait_gone(rig.daemons)
    assert not Path(socket_path(address_of(rig, "p2"))).exists()


async def test_a_pod_is_not_split_by_a_number(rig: Rig) -> None:
    found = {}
    for pod in ("p1", "p2", "p3"):
        for id_ in (pod, f"{pod}a", f"{pod}b"):
            _, found[id_] = await launch(rig, shared(rig, id_, share="2", pod=pod))
    for pod in ("p1", "p2", "p3"):
        assert len({found[id_] for id_ in (pod, f"{pod}a", f"{pod}b")}) == 1
    assert len(set(found.values())) == 3


async def test_of_many_starters_of_a_pod_all_get_one_daemon_of_a_number(rig: Rig) -> None:
    bundles = [shared(rig, f"c{i}", "true", share="2", pod="pod1") for i in range(8)]
    others = [shared(rig, f"d{i}", "true", share="2") for i in range(3)]
    addresses = await race(rig, [*bundles, *others])
    used = {(bundle / "address").read_text() for bundle in bundles}
    assert used == {address_of(rig, "pod1")}
    for rig.address in sorted(addresses):
        await rig.connect()


async def test_the_pods_of_a_dead_daemon_are_ended_each_by_its_own_delete(rig: Rig) -> None:
    pids: dict[str, int] = {}
    for pod in ("p1", "p2"):
        first = shared(rig, pod, pod=pod)
        task = await rig.start(first, params(pod))
        for bundle in (first, shared(rig, f"{pod}a", pod=pod)):  # as Task v3 does
            pids[bundle.name] = (await rig.run(task, bundle)).pid
            assert (bundle / "address").read_text() == address_of(rig, pod)
    assert len(rig.daemons) == 1
    await kill_daemons(rig)
    await delete(rig, rig.root / "p2")
    assert [id_ for id_, pid in pids.items() if alive(pid)] == ["p1", "p1a"]
    assert Path(socket_path(address_of(rig, "p1"))).exists() is False
    await delete(rig, rig.root / "p1")
    assert not any(map(alive, pids.values()))
    assert not list(rig.runc_root.glob("*/*"))
