"""containerd or a shim is killed under running pods."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from grpclib import GRPCError

from tests.cri.pods import SLEEP, Pod
from tests.e2e.test_lifecycle import alive
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.e2e
SCENARIO = "Restart of the manager"
UNTIL_GO = "while ! test -e /go; do sleep 0.05; done; exit {0}"


def test_pods_outlive_containerd_and_are_known_again(make_pod: Callable[..., Pod]) -> None:
    pods = [make_pod() for _ in range(2)]
    running = {pod.start(*SLEEP): pod for pod in pods for _ in range(2)}
    ended = pods[0].start("sh", "-c", "exit 11")
    assert pods[0].wait_exit(ended)[0] == 11
    created = pods[1].create(*SLEEP)
    node = pods[0].node
    shims = node.shims()
    pids = {each: pod.pid(each) for each, pod in running.items()}
    node.kill()
    assert all(map(alive, pids.values()))
    node.start()
    assert node.shims() == shims
    assert {each: pod.pid(each) for each, pod in running.items()} == pids
    assert {pod.state(each) for each, pod in running.items()} == {"CONTAINER_RUNNING"}
    assert pods[0].wait_exit(ended)[0] == 11
    assert pods[1].state(created) == "CONTAINER_CREATED"
    assert all(pod.ready() for pod in pods)
    for each, pod in running.items():
        assert pod.exec(each, "sh", "-c", "exit 3").exit_code == 3
    joiner = pods[0].start("sh", "-c", "exit 12")
    assert pods[0].wait_exit(joiner)[0] == 12
    assert node.shims() == shims


def test_exits_while_containerd_is_away_are_told_with_their_codes(pod: Pod) -> None:
    containers = [pod.start("sh", "-c", UNTIL_GO.format(code)) for code in (0, 31, 32)]
    survivor = pod.start(*SLEEP)
    pids, shims = [pod.pid(each) for each in containers], pod.node.shims()
    pod.node.kill()
    for pid in pids:
        Path(f"/proc/{pid}/root/go").touch()
    wait_until(
        "the shim has seen them end", lambda: not any(Path(f"/proc/{p}").exists() for p in pids)
    )
    # The shim looks at the clock just after; containerd takes longer than this to come back.
    ended = time.time_ns() + 100_000_000
    pod.node.start()
    codes = [(0, "Completed"), (31, "Error"), (32, "Error")]
    assert [pod.wait_exit(each) for each in containers] == codes
    assert all(pod.status(each).finished_at <= ended for each in containers)
    assert pod.state(survivor) == "CONTAINER_RUNNING"
    assert pod.ready()
    assert pod.node.shims() == shims


def test_a_log_goes_on_after_containerd_was_away(pod: Pod) -> None:
    script = "i=0; while ! test -e /go; do i=$((i+1)); echo $i; sleep 0.02; done; exit 33"
    container = pod.start("sh", "-c", script)
    pod.wait_lines("c0", 5)
    pod.node.restart()
    pod.wait_lines("c0", len(pod.log("c0")) + 5)
    assert pod.exec(container, "touch", "/go").exit_code == 0
    assert pod.wait_exit(container)[0] == 33


def test_what_a_container_writes_while_containerd_hangs_is_logged_after_its_death(
    pod: Pod,
) -> None:
    """The reader is there when the container exits, reads nothing more, and dies.

    The next containerd finds the task stopped, and deletes it.  It would close a fifo unread
    of which its open(2) takes longer than the calls before; so the shim answers its SIGKILL
    when the fifo is read.
    """
    script = "echo ready; until test -e /go; do sleep 0.02; done; seq 400; seq 400 >&2; exit 34"
    containers = [pod.start("sh", "-c", script) for _ in range(3)]
    pids = [pod.pid(each) for each in containers]
    for name in ("c0", "c1", "c2"):
        pod.wait_lines(name, 1)
    os.kill(pod.node.pid, signal.SIGSTOP)
    for pid in pids:
        Path(f"/proc/{pid}/root/go").touch()
    wait_until("all have ended", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    time.sleep(0.3)  # a reader that has been given the end would miss the rest
    pod.node.restart()
    numbers = [str(number) for number in range(1, 401)]
    for name, container in zip(("c0", "c1", "c2"), containers, strict=True):
        assert pod.wait_exit(container)[0] == 34
        for stream, before in (("stdout", ["ready"]), ("stderr", [])):
            expected = [*before, *numbers]
            wait_logged(pod, name, stream, len(expected))
            assert texts(pod, name, stream) == expected


def texts(pod: Pod, name: str, stream: str) -> list[str]:
    """Return the whole lines of a stream that are in the log of a container."""
    *lines, _ = (pod.logs / f"{name}-0.log").read_text().split("\n")
    words = [line.split(" ", 3) for line in lines]
    return [text for _time, name, tag, text in words if (name, tag) == (stream, "F")]


def wait_logged(pod: Pod, name: str, stream: str, count: int) -> None:
    """Wait for ``count`` whole lines of a stream."""
    wait_until(
        f"{name}'s {stream} has {count} lines", lambda: len(texts(pod, name, stream)) >= count
    )


@pytest.mark.mortal
@pytest.mark.unshared
def test_a_killed_shim_has_its_pod_told_ended_and_removable(make_pod: Callable[..., Pod]) -> None:
    pod, other = make_pod(), make_pod()
    containers = [pod.start(*SLEEP) for _ in range(2)]
    survivor = other.start(*SLEEP)
    pids = [pod.pid(each) for each in containers]
    (shim,) = pod.node.shims(pod.id)
    os.kill(shim, signal.SIGKILL)
    for container in containers:
        code, reason = pod.wait_exit(container)
        assert code != 0
        assert reason in {"Error", "Unknown"}
    wait_until("the containers are dead", lambda: not any(map(alive, pids)))
    wait_until("the pod is not ready", lambda: not pod.ready())
    for container in containers:
        pod.remove(container)
    pod.end()
    assert other.state(survivor) == "CONTAINER_RUNNING"


@pytest.mark.mortal
def test_a_shim_killed_while_containerd_is_away_is_found_dead(pod: Pod) -> None:
    container = pod.start(*SLEEP)
    pid = pod.pid(container)
    (shim,) = pod.node.shims()
    pod.node.kill()
    os.kill(shim, signal.SIGKILL)
    pod.node.start()
    assert pod.wait_exit(container)[0] != 0
    wait_until("the container is dead", lambda: not alive(pid))
    assert not pod.ready()
    with pytest.raises(GRPCError, match=r"not.*running|CONTAINER_EXITED|not found"):
        pod.exec(container, "true")
    pod.end()
