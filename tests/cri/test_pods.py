"""Pods: the containers of one share a shim, and nothing else that could hurt them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cri.leftovers import cgroups, wait_nothing_left
from tests.cri.node import NAMESPACE, WITH_FILE, WITH_OPTIONS
from tests.cri.pods import SLEEP, Pod
from tests.e2e.test_lifecycle import alive
from tests.e2e.waiting import wait_until
from tests.matrix import record_not_applicable

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cri.node import Node

pytestmark = pytest.mark.e2e
SCENARIO = "Pods"


def test_all_containers_of_a_pod_have_one_shim_and_know_its_address(pod: Pod) -> None:
    shims = pod.node.shims()
    assert len(shims) == 1
    containers = [pod.start(*SLEEP) for _ in range(3)]
    assert pod.node.shims() == shims
    bundles = [pod.node.bundle(each) for each in (pod.id, *containers)]
    assert len({known_address(bundle) for bundle in bundles}) == 1


@pytest.mark.unshared
def test_each_pod_has_a_shim_of_its_own(make_pod: Callable[..., Pod]) -> None:
    pods = [make_pod() for _ in range(3)]
    for pod in pods:
        pod.start(*SLEEP)
    shims = [pod.node.shims(pod.id) for pod in pods]
    assert [len(each) for each in shims] == [1, 1, 1]
    assert len(set.union(*shims)) == 3
    pods[1].end()
    wait_until("its shim is gone", lambda: not any(map(alive, shims[1])))
    assert pods[0].node.shims() == shims[0] | shims[2]
    assert pods[0].ready()
    assert pods[2].ready()


@pytest.mark.parametrize(
    ("command", "code", "reason"),
    [
        (("true",), 0, "Completed"),
        (("sh", "-c", "exit 7"), 7, "Error"),
        (("sh", "-c", "sleep 0.3; exit 200"), 200, "Error"),
    ],
    ids=["0", "7", "200 after a while"],
)
def test_a_container_is_told_ended_with_its_code(
    pod: Pod, command: tuple[str, ...], code: int, reason: str
) -> None:
    container = pod.start(*command)
    assert pod.wait_exit(container) == (code, reason)
    status = pod.status(container)
    assert 0 < status.created_at < status.finished_at
    assert pod.ready()


def test_a_container_that_cannot_start_costs_its_pod_nothing(pod: Pod) -> None:
    sibling = pod.start(*SLEEP)
    container = pod.create("/no/such/program")
    with pytest.raises(Exception, match=r"no such file or directory"):
        pod.node.cri("StartContainer", container_id=container)
    status = pod.status(container)
    assert (pod.state(container), status.exit_code) == ("CONTAINER_EXITED", 128)
    assert status.reason == "StartError"
    pod.remove(container)
    assert pod.exec(sibling, "echo", "well").stdout == b"well\n"
    assert not pod.node.bundle(container).exists()


def test_removing_a_container_leaves_its_siblings_and_nothing_of_itself(pod: Pod) -> None:
    first, second, third = (pod.start(*SLEEP) for _ in range(3))
    shims, pids = pod.node.shims(), [pod.pid(first), pod.pid(third)]
    pod.stop(second, grace=0)
    assert pod.wait_exit(second) == (137, "Error")
    pod.remove(second)
    assert not pod.node.bundle(second).exists()
    assert second not in cgroup_names(pod)
    assert [pod.pid(first), pod.pid(third)] == pids
    assert all(map(alive, pids))
    assert pod.node.shims() == shims
    for container in (first, third):
        assert pod.exec(container, "echo", "here").stdout == b"here\n"


def test_a_crash_touches_no_sibling(pod: Pod) -> None:
    others = [pod.start(*SLEEP) for _ in range(2)]
    victim = pod.start(*SLEEP)
    os.kill(pod.pid(victim), signal.SIGKILL)
    assert pod.wait_exit(victim) == (137, "Error")
    assert [pod.state(each) for each in others] == ["CONTAINER_RUNNING"] * 2
    assert pod.ready()


def test_ten_containers_at_once_start_and_end_with_their_own_codes(pod: Pod) -> None:
    scripts = [
        f"echo I am {n}; while ! test -e /go; do sleep 0.1; done; exit {n}" for n in range(10)
    ]
    replies = pod.node.cri.together(
        [pod.create_request("sh", "-c", script, name=f"n{n}") for n, script in enumerate(scripts)]
    )
    ids = [reply.container_id for reply in replies]
    pod.containers += ids
    pod.node.cri.together([("StartContainer", {"container_id": each}) for each in ids])
    assert [pod.state(each) for each in ids] == ["CONTAINER_RUNNING"] * 10
    assert len({pod.pid(each) for each in ids}) == 10
    assert len(pod.node.shims()) == 1
    pod.node.cri.together(
        [("ExecSync", {"container_id": each, "cmd": ["touch", "/go"]}) for each in ids]
    )
    reasons = ["Completed"] + ["Error"] * 9
    assert [pod.wait_exit(each) for each in ids] == list(zip(range(10), reasons, strict=True))
    for n in range(10):
        pod.wait_lines(f"n{n}", 1)
        assert list(pod.said(f"n{n}")) == [("stdout", f"I am {n}")]


def test_twenty_attempts_in_one_pod_cost_the_shim_no_file_descriptor(pod: Pod) -> None:
    sibling = pod.start(*SLEEP, name="sibling")
    (shim,) = pod.node.shims()
    before: list[str] = []
    for attempt in range(21):
        container = pod.start(
            "sh", "-c", f"echo try; exit {attempt}", name="again", attempt=attempt
        )
        assert pod.wait_exit(container)[0] == attempt
        assert pod.status(container).metadata.attempt == attempt
        pod.remove(container)
        if attempt == 0:  # the first one may warm something up
            before = settled_fds(shim)
    assert settled_fds(shim, before) == before
    assert pod.node.shims() == {shim}
    assert pod.exec(sibling, "true").exit_code == 0


@pytest.mark.parametrize("handler", [WITH_OPTIONS, WITH_FILE])
def test_options_of_a_handler_reach_the_runtime(
    make_pod: Callable[..., Pod],
    node_runtime: Path,
    handler: str,
    request: pytest.FixtureRequest,
    node: Node,
) -> None:
    if handler == WITH_OPTIONS and node.manager.version < (1, 7):
        record_not_applicable(
            request, "a table of options is for runc's own shim, others get a file"
        )
        return
    pod = make_pod(handler)
    container = pod.start("sh", "-c", "echo hello; exec sleep 1000")
    assert pod.exec(container, "echo", "in").stdout == b"in\n"
    state = pod.node.runc_root / NAMESPACE
    assert {path.name for path in state.iterdir()} == {pod.id, container}
    calls = node_runtime.read_text().split()
    assert calls.count("create") == 2
    assert calls.count("exec") == 1
    assert "--systemd-cgroup" not in calls


def test_a_removed_pod_leaves_nothing(pod: Pod) -> None:
    running = pod.start(*SLEEP)
    ended = pod.start("true")
    pod.create(*SLEEP)
    pod.wait_exit(ended)
    pod.node.cri("StopPodSandbox", pod_sandbox_id=pod.id)
    assert not pod.ready()
    assert pod.wait_exit(running)[0] == 137
    pod.node.cri("StopPodSandbox", pod_sandbox_id=pod.id)  # as often as one likes
    pod.node.cri("RemovePodSandbox", pod_sandbox_id=pod.id)
    pod.node.cri("RemovePodSandbox", pod_sandbox_id=pod.id)
    assert not pod.node.cri("ListContainers").containers
    assert not wait_nothing_left(pod.node, [pod])


@pytest.fixture
def node_runtime(node: Node) -> Path:
    """Make the runtime of WITH_OPTIONS; return the file it notes its arguments in."""
    notes = node.root / "calls"
    notes.write_text("")
    wrapper = node.root / "runtime"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >>{notes}\nexec {shutil.which("runc")} "$@"\n')
    wrapper.chmod(0o755)
    return notes


def known_address(bundle: Path) -> str:
    """Return the shim's address as it is kept in a bundle, by the shim or by containerd."""
    if (path := bundle / "address").exists():
        return path.read_text()
    return str(json.loads((bundle / "bootstrap.json").read_text())["address"])


def cgroup_names(pod: Pod) -> set[str]:
    return {path.name for path in cgroups(pod.node.group)}


def settled_fds(shim: int, wanted: list[str] | None = None) -> list[str]:
    """Return the shim's open files, once they are ``wanted`` or have not changed for a while."""
    seen: list[list[str]] = []

    def settled() -> bool:
        seen.append(sorted(kind_of(path) for path in Path(f"/proc/{shim}/fd").iterdir()))
        return seen[-1] == wanted or seen[-20:] == [seen[-1]] * 20

    wait_until("the shim's files settle", settled)
    return seen[-1]


def kind_of(path: Path) -> str:
    """Return an open file without the parts that differ each time, such as an inode's number."""
    try:
        return re.sub(r"\d{3,}|[0-9a-f]{32,}", "N", str(path.readlink()))
    except FileNotFoundError:
        return "closed"
