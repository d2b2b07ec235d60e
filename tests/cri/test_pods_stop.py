"""Stopping containers of a pod, and starting them again, as a kubelet does."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.cri.messages import enum
from tests.cri.pods import GRACEFUL, SLEEP, Pod
from tests.matrix import record_not_applicable

pytestmark = pytest.mark.e2e
SCENARIO = "Life, signals, limits"


def test_a_container_that_listens_is_stopped_gracefully(pod: Pod) -> None:
    container = pod.start(
        "sh", "-c", "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.05; done"
    )
    pod.wait_lines("c0", 1)  # it listens
    began = time.monotonic()
    pod.stop(container, grace=30)
    assert time.monotonic() - began < 15  # far less than the grace
    assert pod.wait_exit(container) == (4, "Error")
    pod.wait_lines("c0", 2)
    assert list(pod.said("c0"))[-1] == ("stdout", "bye")
    pod.stop(container)  # as often as one likes


def test_a_container_that_does_not_listen_is_killed_after_the_grace(pod: Pod) -> None:
    deaf = pod.start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    pod.wait_lines("c0", 1)  # it does not listen
    began = time.monotonic()
    pod.stop(deaf, grace=1)
    assert time.monotonic() - began >= 1
    assert pod.wait_exit(deaf) == (137, "Error")


def test_all_containers_stopped_at_once_end(pod: Pod) -> None:
    containers = [pod.start(*SLEEP) for _ in range(4)]
    # An init without a handler is not moved by SIGTERM.
    pod.node.cri.together(
        [("StopContainer", {"container_id": each, "timeout": 1}) for each in containers]
    )
    assert [pod.wait_exit(each)[0] for each in containers] == [137] * 4
    assert pod.ready()


def test_a_failing_probe_has_the_container_stopped_and_tried_again(pod: Pod) -> None:
    sibling = pod.start(*SLEEP, name="sibling")
    shims = pod.node.shims()
    for attempt in range(5):
        container = pod.start(*GRACEFUL, name="app", attempt=attempt)
        assert pod.exec(container, "test", "!", "-e", "/sick", timeout=10).exit_code == 0
        pod.exec(container, "touch", "/sick")
        assert pod.exec(container, "test", "!", "-e", "/sick", timeout=10).exit_code == 1
        pod.stop(container, grace=30)
        assert pod.wait_exit(container) == (0, "Completed")
        if attempt:
            pod.remove(pod.containers[-2])  # the one before is kept for its log
    assert pod.node.shims() == shims
    assert pod.state(sibling) == "CONTAINER_RUNNING"


def test_the_events_of_a_container_come_in_order(pod: Pod, request: pytest.FixtureRequest) -> None:
    if pod.node.manager.version < (1, 7):
        record_not_applicable(request, "no stream of events")
        return
    method, fields = pod.create_request("sh", "-c", "exit 5")

    async def live() -> tuple[str, list[str]]:
        told: list[str] = []
        async with pod.node.cri.turn() as turn, turn.events() as events:
            id_ = {"container_id": (await turn.call(method, **fields)).container_id}
            await turn.call("StartContainer", **id_)
            async for event in events:
                if event.container_id == id_["container_id"]:
                    told.append(enum("ContainerEventType", event.container_event_type))
                    if told[-1] == "CONTAINER_STOPPED_EVENT":
                        await turn.call("RemoveContainer", **id_)
                    if told[-1] == "CONTAINER_DELETED_EVENT":
                        break
        return id_["container_id"], told

    container, told = asyncio.run(live())
    pod.containers.append(container)
    names = ("CREATED", "STARTED", "STOPPED", "DELETED")
    assert told == [f"CONTAINER_{name}_EVENT" for name in names]
