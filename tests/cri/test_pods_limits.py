"""What pods use and may use: figures, limits that change, and running out of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cri.pods import SLEEP, Pod
from tests.e2e.leftovers import CGROUPS
from tests.e2e.waiting import wait_until
from tests.matrix import record_not_applicable

pytestmark = pytest.mark.e2e
SCENARIO = "Life, signals, limits"
MIB = 1 << 20
# Doubles a variable without end.
EAT = "x=x; while :; do x=$x$x; done"


def test_the_figures_of_a_container_are_its_own(pod: Pod) -> None:
    busy = pod.start(
        "sh", "-c", "i=0; while test $i -lt 300000; do i=$((i+1)); done; exec sleep 1000"
    )
    idle = pod.start(*SLEEP)

    def cpu(container: str) -> int:
        stats = pod.node.cri("ContainerStats", container_id=container).stats
        assert stats.attributes.id == container
        return int(stats.cpu.usage_core_nano_seconds.value)

    wait_until("it has used 50 ms", lambda: cpu(busy) > 50_000_000)
    assert 0 < cpu(idle) < cpu(busy)
    memory = pod.node.cri("ContainerStats", container_id=busy).stats.memory
    assert 0 < memory.working_set_bytes.value < 100 * MIB


def test_the_figures_of_a_pod_hold_those_of_its_containers(
    pod: Pod, request: pytest.FixtureRequest
) -> None:
    if pod.node.manager.version < (1, 7):
        record_not_applicable(request, "no figures of pods")
        return
    containers = {pod.start(*SLEEP) for _ in range(2)}
    linux = pod.node.cri("PodSandboxStats", pod_sandbox_id=pod.id).stats.linux
    assert {each.attributes.id for each in linux.containers} == containers
    assert all(each.cpu.usage_core_nano_seconds.value > 0 for each in linux.containers)
    assert all(each.memory.working_set_bytes.value > 0 for each in linux.containers)
    assert linux.cpu.usage_core_nano_seconds.value > 0
    assert linux.memory.working_set_bytes.value > 0


def test_a_changed_limit_is_in_force_for_that_container_only(pod: Pod) -> None:
    first, second = (pod.start(*SLEEP, memory=64 * MIB) for _ in range(2))
    limits = {"memory_limit_in_bytes": 96 * MIB, "cpu_period": 100_000, "cpu_quota": 50_000}
    pod.node.cri("UpdateContainerResources", container_id=first, linux=limits)
    assert memory_limit(pod, first) == 96 * MIB
    assert memory_limit(pod, second) == 64 * MIB
    assert pod.exec(first, "true").exit_code == 0


def test_running_out_of_memory_is_told_of_that_container_only(pod: Pod) -> None:
    sibling = pod.start(*SLEEP, memory=64 * MIB)
    eater = pod.start("sh", "-c", EAT, memory=16 * MIB)
    assert pod.wait_exit(eater) == (137, "OOMKilled")
    assert pod.state(sibling) == "CONTAINER_RUNNING"
    pod.stop(sibling, grace=0)
    assert pod.wait_exit(sibling) == (137, "Error")


def test_after_running_out_of_memory_the_next_attempt_starts_afresh(pod: Pod) -> None:
    for attempt in range(2):
        eater = pod.start("sh", "-c", EAT, name="c", attempt=attempt, memory=16 * MIB)
        assert pod.wait_exit(eater) == (137, "OOMKilled")
        pod.remove(eater)
    calm = pod.start("sh", "-c", "exit 3", name="c", attempt=2, memory=16 * MIB)
    assert pod.wait_exit(calm) == (3, "Error")


def memory_limit(pod: Pod, container: str) -> int:
    files = [
        CGROUPS / "memory" / "memory.limit_in_bytes",
        CGROUPS / "memory.max",
    ]
    below = Path(pod.node.group, pod.name, container)
    (path,) = (f.parent / below / f.name for f in files if (f.parent / below / f.name).exists())
    return int(path.read_text())
