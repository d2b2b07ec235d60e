"""Pods with shared pid namespaces: the containers that an exit ends, and the others."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cri.pods import SLEEP, Pod
from tests.e2e.test_lifecycle import alive
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
SCENARIO = "Pods"
# A child that holds stdout, too, must end with its container.
FAMILY = ("sh", "-c", "sleep 1234 & echo $!; exec sleep 1000")


def test_in_a_pods_pid_namespace_a_dying_container_ends_only_its_own(pod: Pod) -> None:
    first, second = pod.start(*FAMILY, pid="POD"), pod.start(*FAMILY, pid="POD")
    spaces = {namespace(pod.pid(each)) for each in (first, second)}
    assert len(spaces) == 1
    assert namespace(pod.pid(first)) != namespace(os.getpid())
    families = {each: family(pod, each) for each in (first, second)}
    assert [len(each) for each in families.values()] == [2, 2]

    os.kill(pod.pid(first), signal.SIGKILL)
    assert pod.wait_exit(first) == (137, "Error")
    wait_until("its child is gone", lambda: not any(map(alive, families[first])))
    assert all(map(alive, families[second]))
    assert pod.state(second) == "CONTAINER_RUNNING"
    assert pod.ready()
    assert pod.exec(second, "echo", "here").stdout == b"here\n"
    pod.stop(second, grace=0)
    assert pod.wait_exit(second)[0] == 137
    wait_until("all are gone", lambda: not any(map(alive, families[second])))
    assert pod.ready()


def test_with_a_pid_namespace_of_its_own_a_container_sees_itself_alone(pod: Pod) -> None:
    first, second = pod.start(*SLEEP), pod.start(*SLEEP)
    assert namespace(pod.pid(first)) != namespace(pod.pid(second))
    assert pod.exec(first, "cat", "/proc/1/cmdline").stdout == b"sleep\x001000\x00"
    pod.stop(first, grace=0)
    assert pod.state(second) == "CONTAINER_RUNNING"


def test_a_container_beside_a_target_ends_without_it(pod: Pod) -> None:
    target = pod.start(*FAMILY)
    guest = pod.start(*FAMILY, pid="TARGET", target=target)
    assert namespace(pod.pid(guest)) == namespace(pod.pid(target))
    both, guests = family(pod, target), family(pod, guest)
    pod.stop(guest, grace=0)
    assert pod.wait_exit(guest)[0] == 137
    wait_until("the guest is gone", lambda: not any(map(alive, guests)))
    assert all(map(alive, both))
    pod.remove(guest)
    assert pod.exec(target, "true").exit_code == 0


def test_a_target_that_ends_takes_its_guest_along(pod: Pod) -> None:
    target, bystander = pod.start(*SLEEP), pod.start(*SLEEP)
    guest = pod.start(*FAMILY, pid="TARGET", target=target)
    os.kill(pod.pid(target), signal.SIGKILL)  # the kernel kills the rest of its namespace
    assert pod.wait_exit(target) == (137, "Error")
    assert pod.wait_exit(guest) == (137, "Error")
    assert pod.state(bystander) == "CONTAINER_RUNNING"


def namespace(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


def family(pod: Pod, container: str) -> list[int]:
    """Return the pids of the container on the host: its init and the child of it."""
    init = pod.pid(container)
    children = Path(f"/proc/{init}/task/{init}/children")
    wait_until("the child is there", lambda: children.read_text().split())
    return [init, *map(int, children.read_text().split())]
