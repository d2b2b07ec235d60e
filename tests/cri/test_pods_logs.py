"""The output of a pod's containers reaches their logs on disk, complete and in order."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.cri.streaming import STDOUT, open_stream
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from tests.cri.pods import Pod

pytestmark = pytest.mark.e2e
SCENARIO = "Logging"
LINES = 20_000


def test_a_log_is_whole_in_order_and_in_the_format(pod: Pod) -> None:
    script = f"seq 1 {LINES}; echo problem >&2"
    container = pod.start("sh", "-c", script, name="chatty")
    assert pod.wait_exit(container)[0] == 0
    pod.wait_lines("chatty", LINES + 1)
    said = list(pod.said("chatty"))
    out = [text for stream, text in said if stream == "stdout"]
    assert out == [str(n) for n in range(1, LINES + 1)]
    assert [text for stream, text in said if stream == "stderr"] == ["problem"]
    stamp = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(Z|[+-]\d\d:\d\d) ")
    assert all(stamp.match(line) for line in pod.log("chatty"))


def test_logs_of_siblings_do_not_mix(pod: Pod) -> None:
    script = "i=0; while test $i -lt 500; do i=$((i+1)); echo {0} $i; done"
    containers = [pod.start("sh", "-c", script.format(n), name=f"s{n}") for n in range(3)]
    for n, container in enumerate(containers):
        assert pod.wait_exit(container)[0] == 0
        pod.wait_lines(f"s{n}", 500)
        assert [text for _, text in pod.said(f"s{n}")] == [f"{n} {i}" for i in range(1, 501)]


def test_a_container_with_a_terminal_logs_what_it_says(pod: Pod) -> None:
    container = pod.start("sh", "-c", "tty; echo err >&2; exit 6", name="term", tty=True)
    assert pod.wait_exit(container) == (6, "Error")
    pod.wait_lines("term", 2)
    assert list(pod.said("term")) == [("stdout", "/dev/pts/0"), ("stdout", "err")]


def test_attaching_shows_what_is_said_from_then_on(pod: Pod) -> None:
    script = "while ! test -e /go; do sleep 0.05; done; echo for both; exit 9"
    container = pod.start("sh", "-c", script, name="shown")
    reply = pod.node.cri("Attach", container_id=container, stdout=True, stderr=True)
    with open_stream(reply.url) as stream:
        pod.exec(container, "touch", "/go")
        assert stream.read_all()[STDOUT] == b"for both\n"
    assert pod.wait_exit(container)[0] == 9
    pod.wait_lines("shown", 1)
    assert list(pod.said("shown")) == [("stdout", "for both")]


def test_a_log_that_is_rotated_goes_on_in_a_new_file(pod: Pod) -> None:
    script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"
    container = pod.start("sh", "-c", script, name="long")
    pod.wait_lines("long", 5)
    old = (pod.logs / "long-0.log").rename(pod.logs / "old-0.log")
    pod.node.cri("ReopenContainerLog", container_id=container)
    wait_until("it goes on", (pod.logs / "long-0.log").exists)
    pod.wait_lines("long", 5)
    pod.stop(container, grace=0)
    assert old.exists()
    numbers = [int(text) for name in ("old", "long") for _, text in pod.said(name)]
    assert numbers == list(range(1, len(numbers) + 1))
