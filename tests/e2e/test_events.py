"""What containerd's subscribers see, and in which order."""

from __future__ import annotations

import json
import queue
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.attached import attached
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.ctr import Ctr

pytestmark = pytest.mark.e2e
SCENARIO = "Events"


@dataclass(frozen=True)
class Event:
    topic: str
    body: dict[str, Any]

    def __str__(self) -> str:
        """Return its name; that of an exit has the exec id, or init."""
        if self.topic != "exit":
            return self.topic
        return (
            f"exit {'init' if self.body['id'] == self.body['container_id'] else self.body['id']}"
        )


class Subscriber:
    """The task events of one namespace, in the order of their arrival."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def feed(self, line: str) -> None:
        self._lines.put(line)

    def until(self, last: str, container: str, timeout: float = 20) -> list[Event]:
        """Collect the events of ``container`` up to the one called ``last``."""
        return self.until_all(last, {container}, timeout)[container]

    def until_all(
        self, last: str, containers: set[str], timeout: float = 20
    ) -> dict[str, list[Event]]:
        """Collect the events of each of ``containers`` up to the one called ``last``."""
        events: dict[str, list[Event]] = {name: [] for name in containers}
        waiting = set(containers)
        while waiting:
            try:
                line = self._lines.get(timeout=timeout)
            except queue.Empty:
                seen = {name: [str(event) for event in events[name]] for name in waiting}
                raise AssertionError(f"no {last} of {seen}") from None
            event = self._parse(line)
            if event is not None and event.body["container_id"] in waiting:
                name = event.body["container_id"]
                events[name].append(event)
                waiting -= {name} if str(event) == last else set()
        return events

    def _parse(self, line: str) -> Event | None:
        # DATE TIME ZONE ZONE NAMESPACE TOPIC JSON
        words = line.split(maxsplit=6)
        if len(words) < 7 or words[4] != self._namespace or not words[5].startswith("/tasks/"):
            return None
        return Event(words[5].removeprefix("/tasks/"), json.loads(words[6]))

    def wait_started(self, ctr: Ctr) -> None:
        """Wait until a marker event comes through: ctr does not report when it has
        subscribed.
        """

        def marked() -> bool:
            ctr.ok("c", "label", marker, "mark=1")
            return not self._lines.empty()

        marker = ctr.new_id()
        ctr.ok("c", "create", *ctr.run_args("--", marker, "true")[1:])
        wait_until("the subscription", marked)
        ctr.ok("c", "rm", marker)


@contextmanager
def subscribed(ctr: Ctr) -> Iterator[Subscriber]:
    subscriber = Subscriber(ctr.containerd.namespace)
    with attached(ctr, "events") as process:
        stdout = process.stdout
        assert stdout is not None

        def read() -> None:
            for line in stdout:
                subscriber.feed(line.decode())

        reader = threading.Thread(target=read)
        reader.start()
        try:
            subscriber.wait_started(ctr)
            yield subscriber
        finally:
            process.kill()
            reader.join(10)


def test_the_life_of_a_container_is_told_in_order(ctr: Ctr) -> None:
    with subscribed(ctr) as subscriber:
        name = ctr.start("sleep", "1000")
        pid = ctr.pid(name)
        ctr.ok("task", "exec", "--exec-id", "one", name, "true")
        ctr.ok("task", "pause", name)
        ctr.ok("task", "resume", name)
        ctr.kill(name)
        ctr.wait_state(name, "STOPPED")
        assert ctr.delete(name) == 137
        events = subscriber.until("delete", name)
    assert [str(event) for event in events] == [
        "create",
        "start",
        "exec-added",
        "exec-started",
        "exit one",
        "paused",
        "resumed",
        "exit init",
        "delete",
    ]
    create, start, *_rest, exited, delete = (event.body for event in events)
    assert create["bundle"] == str(ctr.containerd.bundle(name))
    assert start["pid"] == exited["pid"] == delete["pid"] == pid
    assert exited["exit_status"] == delete["exit_status"] == 137
    assert exited["exited_at"] == delete["exited_at"]


def test_a_container_that_dies_at_once_still_starts_before_it_exits(ctr: Ctr) -> None:
    with subscribed(ctr) as subscriber:
        for code in range(5):
            name = ctr.new_id()
            assert ctr.run("--rm", "--", name, "sh", "-c", f"exit {code}").code == code
            events = subscriber.until("delete", name)
            assert [str(e) for e in events] == ["create", "start", "exit init", "delete"]


def test_the_exit_of_an_exec_is_told_before_the_exit_of_init(ctr: Ctr) -> None:
    with subscribed(ctr) as subscriber:
        name = ctr.start("sleep", "1000")
        ctr.exec_detached(name, "late", "sleep", "1000")
        ctr.kill(name)
        ctr.wait_state(name, "STOPPED")
        ctr("task", "rm", "--exec-id", "late", name)
        assert ctr.delete(name) == 137
        events = [str(event) for event in subscriber.until("delete", name)]
    assert events[-3:] == ["exit late", "exit init", "delete"]


def test_running_out_of_memory_is_told_before_the_exit(ctr: Ctr) -> None:
    with subscribed(ctr) as subscriber:
        name = ctr.new_id()
        limit = str(20 << 20)
        result = ctr.run("--rm", "--memory-limit", limit, "--", name, "tail", "/dev/zero")
        assert result.code == 137
        events = [str(event) for event in subscriber.until("delete", name)]
    assert "oom" in events
    assert events.index("oom") < events.index("exit init")
