"""Several containers in one daemon: which of them share it, and what stays each one's own."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from shim.api import process_pb2
from shim.api.options_pb2 import Options
from shim.api.runtimeoptions_pb2 import Options as GenericOptions
from shim.api.task_pb2 import (
    ConnectRequest,
    DeleteRequest,
    KillRequest,
    ShutdownRequest,
    StateRequest,
    WaitRequest,
)
from shim.container.reservations import LIMIT
from shim.linux.sockets import can_connect, socket_path
from shim.names import SHARE
from tests.e2e.waiting import PATIENCE
from tests.process.rig import Rig, alive, wait_gone
from tests.process.test_delete import delete
from tests.process.test_pods import SANDBOX, address_of, params, race, shut_down

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.api.task_grpc import TaskStub

SLEEP = ("sleep", "1000")


def sharing(share: str = "namespace", pod: str = "") -> Callable[[dict[str, Any]], None]:
    """Return a change of config.json that asks for a shared daemon."""

    def change(config: dict[str, Any]) -> None:
        config["annotations"] = {SHARE: share, **({SANDBOX: pod} if pod else {})}

    return change


def shared(rig: Rig, id_: str, *args: str, share: str = "namespace", pod: str = "") -> Path:
    return rig.bundle(id_, *(args or SLEEP), change=sharing(share, pod))


async def launch(rig: Rig, bundle: Path, **fields: Any) -> tuple[TaskStub, int]:
    """Start and run a container; return its client and the pid of its daemon."""
    task = await rig.start(bundle)
    await rig.run(task, bundle, **fields)
    return task, await daemon_of(task)


async def daemon_of(task: TaskStub) -> int:
    return (await task.Connect(ConnectRequest(id="any"), timeout=5)).shim_pid


async def remove(task: TaskStub, id_: str) -> int:
    """Kill and delete a container as a manager does; return its exit status."""
    await task.Kill(KillRequest(id=id_, signal=9), timeout=5)
    await task.Wait(WaitRequest(id=id_), timeout=10)
    status = (await task.Delete(DeleteRequest(id=id_), timeout=15)).exit_status
    await task.Shutdown(ShutdownRequest(id=id_), timeout=5)
    return status


async def kill_daemons(rig: Rig) -> None:
    for pid in rig.daemons:
        os.kill(pid, signal.SIGKILL)
    await wait_gone(rig.daemons)


# -- who shares -------------------------------------------------------------------


async def test_of_many_starters_at_once_all_get_one_daemon(rig: Rig) -> None:
    """Round by round: nothing there, a daemon that was killed, one that has shut down."""
    bundles = [shared(rig, f"c{i}", "true") for i in range(10)]
    for end in ("kill", "shut down", "nothing"):
        (rig.address,) = await race(rig, bundles)
        rig.daemons.clear()
        task = await rig.connect()
        for bundle in bundles[:2]:
            await rig.run(task, bundle)
            await task.Wait(WaitRequest(id=bundle.name), timeout=20)
            await task.Delete(DeleteRequest(id=bundle.name), timeout=20)
        assert len(rig.daemons) == 1
        if end == "kill":
            await kill_daemons(rig)
            assert Path(socket_path(rig.address)).exists()
        elif end == "shut down":
            await shut_down(task)  # most of the starters have sent no Create
            await wait_gone(rig.daemons, LIMIT + 5)
            assert not Path(socket_path(rig.address)).exists()


async def test_a_number_is_the_most_containers_of_a_daemon(rig: Rig) -> None:
    bundles = [shared(rig, f"c{i}", "true", share="3") for i in range(10)]
    addresses = await race(rig, bundles)
    assert len(addresses) == 4
    for rig.address in addresses:
        await rig.connect()
    assert len(rig.daemons) == 4
    used = [(bundle / "address").read_text() for bundle in bundles]
    assert sorted(used.count(address) for address in addresses) == [1, 3, 3, 3]


async def test_a_place_that_is_free_again_is_used(rig: Rig) -> None:
    daemons = []
    for i in range(4):
        _, pid = await launch(rig, shared(rig, f"c{i}", share="2"))
        daemons.append(pid)
        if i == 2:
            rig.address = (rig.root / "c0/address").read_text()
            await remove(await rig.connect(), "c0")
    assert daemons == [daemons[0], daemons[0], daemons[2], daemons[0]]


async def test_whoever_asks_for_another_daemon_gets_one(rig: Rig) -> None:
    _, first = await launch(rig, shared(rig, "c1"))
    for id_, share in (("c2", "5"), ("c3", "pod"), ("c4", "1")):
        _, pid = await launch(rig, shared(rig, id_, share=share))
        assert pid != first
    assert len(rig.daemons) == 4
    _, pid = await launch(rig, shared(rig, "c5"))
    assert pid == first


@pytest.mark.parametrize("where", ["annotation", "option", "number", "file"])
async def test_each_place_of_the_setting_counts(
    rig: Rig, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host_file = rig.root / "host.toml"
    host_file.write_text('share = "namespace"\n' if where == "file" else "")
    monkeypatch.setenv("TRIO_SHIM_CONFIG", str(host_file))
    stdin = {"option": b'Share = "namespace"', "number": b"Share = 2"}.get(where, b"")
    change = sharing() if where == "annotation" else None
    found = []
    for id_ in ("c1", "c2"):
        bundle = rig.bundle(id_, *SLEEP, change=change)
        options = GenericOptions(type_url="x", config_body=stdin)
        task = await rig.start(bundle, packed(options) if stdin else b"")
        await rig.run(task, bundle)
        found.append(await daemon_of(task))
    assert found[0] == found[1]


def packed(options: Any) -> bytes:
    """Return options as containerd writes them to the standard input of ``start``."""
    from google.protobuf.any_pb2 import Any as AnyMessage

    message = AnyMessage(type_url=options.DESCRIPTOR.full_name, value=options.SerializeToString())
    return message.SerializeToString()


async def test_an_annotation_wins_over_an_option_over_the_file(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    host_file = rig.root / "host.toml"
    host_file.write_text('share = "namespace"\n')
    monkeypatch.setenv("TRIO_SHIM_CONFIG", str(host_file))
    _, first = await launch(rig, rig.bundle("c1", *SLEEP))
    own = packed(GenericOptions(type_url="x", config_body=b'Share = "pod"'))
    bundle = rig.bundle("c2", *SLEEP)
    task = await rig.start(bundle, own)
    await rig.run(task, bundle)
    assert await daemon_of(task) != first
    bundle = shared(rig, "c3")
    task = await rig.start(bundle, own)
    await rig.run(task, bundle)
    assert await daemon_of(task) == first


@pytest.mark.parametrize("value", ["", "0", "-1", "10001", "pods", "1.5"])
async def test_a_wrong_setting_is_an_error_in_one_line(rig: Rig, value: str) -> None:
    bundle = shared(rig, "c1", share=value)
    done = rig.run_shim(bundle, "-id", "c1", "start")
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert f"annotation {SHARE} must be pod, namespace or a number".encode() in done.stderr


@pytest.mark.parametrize("option", ["no_new_keyring", "shim_cgroup", "SCHED_CORE"])
async def test_an_option_of_the_daemon_itself_gives_a_daemon_of_its_own(
    rig: Rig, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = await launch(rig, shared(rig, "c1"))
    bundle = shared(rig, "c2")
    stdin = b""
    if option == "SCHED_CORE":
        monkeypatch.setenv(option, "1")
    else:
        value: Any = True if option == "no_new_keyring" else "/nowhere/at/all"
        stdin = packed(Options(root=str(rig.runc_root), **{option: value}))
    done = rig.run_shim(bundle, "-id", "c2", "start", stdin=stdin)
    if option == "no_new_keyring":
        rig.address = rig.answer(done.stdout)
        assert await daemon_of(await rig.connect()) != first
    elif option == "shim_cgroup":  # a shared daemon would not have tried
        assert b"/nowhere/at/all" in done.stderr
    elif done.returncode:  # this machine may have no core scheduling
        assert b"SCHED_CORE" in done.stderr
    else:
        rig.address = rig.answer(done.stdout)
        assert await daemon_of(await rig.connect()) != first


async def attributes(rig: Rig, id_: str, wrap: tuple[str, ...] = ()) -> tuple[int, str]:
    """Launch with ``start`` in a wrapper; return the daemon's pid, and what its runtime has."""
    say = f'case "$*" in *create*) (umask; nice; ulimit -n; env) >{rig.root}/{id_}.said;; esac'
    runtime = rig.wrapper(f"runtime-{id_}", f'{say}\nexec runc "$@"')
    bundle = shared(rig, id_)
    done = await trio.to_thread.run_sync(
        partial(rig.run_shim, bundle, "-id", id_, "start", wrap=wrap)
    )
    assert done.returncode == 0, done.stderr
    rig.address = rig.answer(done.stdout)
    task = await rig.connect()
    await rig.run(task, bundle, options=rig.options(binary_name=runtime))
    return await daemon_of(task), (rig.root / f"{id_}.said").read_text()


@pytest.mark.parametrize(
    ("wrap", "sign"),
    [
        (("env", "COLOUR=blue"), "COLOUR=blue"),
        (("sh", "-c", 'umask 027; exec "$@"', "sh"), "0027"),
        (("nice", "-n", "5"), "5"),
        (("sh", "-c", 'ulimit -n 512; exec "$@"', "sh"), "512"),
        (("setarch", "-R"), ""),
        (("chrt", "--batch", "0"), ""),
        (("ionice", "-c", "2", "-n", "7"), ""),
        (("taskset", "-c", "0"), ""),
    ],
)
async def test_managers_with_other_attributes_never_share(
    rig: Rig, wrap: tuple[str, ...], sign: str
) -> None:
    first, _ = await attributes(rig, "c1")
    second, said = await attributes(rig, "c2", wrap)
    assert first != second
    assert sign in said.split("\n") or not sign
    third, said = await attributes(rig, "c3", wrap)
    assert third == second
    assert sign in said.split("\n") or not sign
    again, said = await attributes(rig, "c4")
    assert again == first
    assert "COLOUR=blue" not in said.split("\n")


async def test_a_daemon_without_a_fork_server_is_found_too(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways to do the work compute the same name; the environment differs here."""
    monkeypatch.setenv("TRIO_SHIM_FORKSERVER", "off")
    _, first = await launch(rig, shared(rig, "c1"))
    _, second = await launch(rig, shared(rig, "c2"))
    assert first == second


# -- daemons that end, hang or are full -------------------------------------------


async def test_a_daemon_that_is_stopped_is_passed_over(rig: Rig) -> None:
    _, first = await launch(rig, shared(rig, "c1"))
    os.kill(first, signal.SIGSTOP)
    try:
        with trio.fail_after(5 * PATIENCE):
            task, second = await launch(rig, shared(rig, "c2"))
        assert second != first
        _, third = await launch(rig, shared(rig, "c3"))
        assert third == second
        state = await task.State(StateRequest(id="c2"), timeout=5)
        assert state.status == process_pb2.RUNNING
    finally:
        os.kill(first, signal.SIGCONT)


async def test_a_daemon_ends_when_its_last_container_is_deleted(rig: Rig) -> None:
    task, _ = await launch(rig, shared(rig, "c1"))
    await launch(rig, shared(rig, "c2"))
    assert await remove(task, "c1") == 137
    state = await task.State(StateRequest(id="c2"), timeout=5)
    assert state.status == process_pb2.RUNNING
    await remove(task, "c2")
    await wait_gone(rig.daemons)
    assert not Path(socket_path(rig.address)).exists()


async def test_a_daemon_stays_for_a_container_whose_create_is_on_its_way(rig: Rig) -> None:
    task, _ = await launch(rig, shared(rig, "c1"))
    second = shared(rig, "c2")
    other = await rig.start(second)
    await remove(task, "c1")
    await rig.run(other, second)
    assert (await other.State(StateRequest(id="c2"), timeout=5)).status == process_pb2.RUNNING
    assert len(rig.daemons) == 1
    await remove(other, "c2")
    await wait_gone(rig.daemons)


async def test_starts_that_race_with_the_end_of_a_daemon_all_win(rig: Rig) -> None:
    """Each round deletes the last container while the next one starts."""
    bundle = shared(rig, "c0")
    task, _ = await launch(rig, bundle)
    for number in range(1, 12):
        following = shared(rig, f"c{number}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(remove, task, f"c{number - 1}")
            task = await rig.start(following)
        await rig.run(task, following)
        state = await task.State(StateRequest(id=following.name), timeout=5)
        assert state.status == process_pb2.RUNNING


async def test_with_few_open_files_left_another_daemon_is_started(rig: Rig) -> None:
    wrap = ("sh", "-c", 'ulimit -n 44; exec "$@"', "sh")
    found = [(await attributes(rig, f"c{i}", wrap))[0] for i in range(9)]
    assert 2 <= len(set(found)) < 9
    for i in range(9):
        rig.address = (rig.root / f"c{i}/address").read_text()
        task = await rig.connect()
        state = await task.State(StateRequest(id=f"c{i}"), timeout=5)
        assert state.status == process_pb2.RUNNING


# -- what stays each container's own ------------------------------------------------


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


# -- pods -----------------------------------------------------------------------------


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
