"""Which containers share a daemon, and what happens when it ends, hangs or is full."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from shim.api import process_pb2
from shim.api.options_pb2 import Options
from shim.api.runtimeoptions_pb2 import Options as GenericOptions
from shim.api.task_pb2 import (
    DeleteRequest,
    StateRequest,
    WaitRequest,
)
from shim.container.reservations import LIMIT
from shim.linux.sockets import socket_path
from shim.names import SHARE
from tests.e2e.waiting import PATIENCE
from tests.process.rig import Rig, wait_gone
from tests.process.sharing import (
    SLEEP,
    attributes,
    daemon_of,
    kill_daemons,
    launch,
    packed,
    remove,
    shared,
    sharing,
)
from tests.process.test_pods import race, shut_down

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
