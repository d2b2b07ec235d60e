"""Many containers and execs at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_events import subscribed

if TYPE_CHECKING:
    from tests.e2e.ctr import Ctr

pytestmark = pytest.mark.e2e
SCENARIO = "Many at once"


def test_twenty_five_containers_at_once_keep_output_codes_and_order(ctr: Ctr) -> None:
    def one(number: int) -> tuple[int, str, str]:
        script = f"echo {number}; exit {number}"
        result = ctr.run("--rm", "--", names[number], "sh", "-c", script, timeout=120)
        return result.code, result.text, result.err

    assert ctr.run("--rm", "--", ctr.new_id(), "true").code == 0  # a fork server is there
    names = [ctr.new_id() for _ in range(25)]
    with subscribed(ctr) as subscriber, ThreadPoolExecutor(len(names)) as pool:
        results = list(pool.map(one, range(len(names))))
        assert results == [(number, f"{number}\n", "") for number in range(len(names))]
        lives = subscriber.until_all("delete", set(names))
    for number, name in enumerate(names):
        assert [str(e) for e in lives[name]] == ["create", "start", "exit init", "delete"]
        exited, deleted = (event.body for event in lives[name][2:])
        # The JSON of an event omits fields that are zero.
        assert exited.get("exit_status", 0) == deleted.get("exit_status", 0) == number


def test_ten_containers_live_side_by_side(ctr: Ctr) -> None:
    with ThreadPoolExecutor(10) as pool:
        names = list(pool.map(lambda _: ctr.start("sleep", "1000"), range(10)))
        assert {ctr.state(name) for name in names} == {"RUNNING"}
        assert len({ctr.pid(name) for name in names}) == 10
        list(pool.map(ctr.kill, names))
        for name in names:
            ctr.wait_state(name, "STOPPED")
        assert set(pool.map(ctr.delete, names)) == {137}


def test_twenty_execs_in_one_container_at_once_are_told_apart(ctr: Ctr) -> None:
    def one(number: int) -> tuple[int, str]:
        script = f"cat; exit {number}"
        result = ctr.exec(name, "sh", "-c", script, stdin=b"%d\n" % number)
        return result.code, result.text

    with subscribed(ctr) as subscriber:
        name = ctr.start("sleep", "1000")
        with ThreadPoolExecutor(20) as pool:
            results = list(pool.map(one, range(20)))
        ctr.kill(name)
        ctr.wait_state(name, "STOPPED")
        assert ctr.delete(name) == 137
        events = subscriber.until("delete", name)
    assert results == [(number, f"{number}\n") for number in range(20)]
    told = [str(event) for event in events]
    assert told[-2:] == ["exit init", "delete"]
    assert [told.count(topic) for topic in ("exec-added", "exec-started")] == [20, 20]
    ends = {event.body["id"]: event for event in events if str(event).startswith("exit e")}
    assert {e.body.get("exit_status", 0) for e in ends.values()} == set(range(20))
    for exec_id, end in ends.items():
        mine = [e for e in events if exec_id in (e.body.get("exec_id"), e.body.get("id"))]
        assert [e.topic for e in mine] == ["exec-added", "exec-started", "exit"]
        assert mine[1].body["pid"] == end.body["pid"]
