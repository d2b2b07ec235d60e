"""Commands in the containers of a pod: answers, bounds, crowds, and the streaming ones."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from grpclib import GRPCError
from grpclib.const import Status

from tests.cri.pods import SLEEP, Pod, exec_request
from tests.cri.streaming import ERROR, STDERR, STDOUT, open_stream
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e
SCENARIO = "Exec"


def test_a_command_answers_with_both_streams_and_its_code(pod: Pod) -> None:
    container = pod.start(*SLEEP)
    reply = pod.exec(container, "sh", "-c", "echo out; echo err >&2; exit 42")
    assert (reply.stdout, reply.stderr, reply.exit_code) == (b"out\n", b"err\n", 42)
    reply = pod.exec(container, "sh", "-c", "kill -TERM $$")
    assert reply.exit_code == 143


def test_a_megabyte_of_output_is_whole(pod: Pod) -> None:
    container = pod.start(*SLEEP)
    reply = pod.exec(container, "seq", "1", "150000", timeout=60)
    assert reply.stdout == b"".join(b"%d\n" % n for n in range(1, 150_001))


def test_a_command_that_does_not_exist_is_an_error(pod: Pod) -> None:
    container = pod.start(*SLEEP)
    with pytest.raises(GRPCError, match=r"no such file or directory"):
        pod.exec(container, "/no/such/program")
    assert pod.exec(container, "true").exit_code == 0


def test_a_command_past_its_time_is_killed(pod: Pod) -> None:
    container = pod.start(*SLEEP)
    with pytest.raises(GRPCError) as caught:
        pod.exec(container, "sh", "-c", "exec sleep 987", timeout=1)
    assert caught.value.status is Status.DEADLINE_EXCEEDED
    wait_until("the command is gone", lambda: commands(pod.pid(container)) == ["sleep 1000"])
    assert pod.exec(container, "echo", "on").stdout == b"on\n"


def test_fifty_commands_at_once_each_answer_with_their_own_code(pod: Pod) -> None:
    container = pod.start(*SLEEP)
    requests = [
        exec_request(container, "sh", "-c", f"echo {n}; echo -{n} >&2; exit {n}")
        for n in range(50)
    ]
    replies = pod.node.cri.together(requests)
    said = [(reply.exit_code, reply.stdout, reply.stderr) for reply in replies]
    assert said == [(n, b"%d\n" % n, b"-%d\n" % n) for n in range(50)]
    assert commands(pod.pid(container)) == ["sleep 1000"]


def test_a_container_that_ends_ends_its_commands(pod: Pod) -> None:
    container, sibling = pod.start(*SLEEP), pod.start(*SLEEP)
    init = pod.pid(container)
    calls = [exec_request(container, "sleep", "1000") for _ in range(5)]

    async def stop_under_them() -> list[int]:
        async with pod.node.cri.turn() as turn, asyncio.TaskGroup() as group:
            execs = [group.create_task(turn.call(name, **fields)) for name, fields in calls]
            while commands(init).count("sleep 1000") < 6:
                await asyncio.sleep(0.02)
            await turn.call("StopContainer", container_id=container, timeout=0)
        return [each.result().exit_code for each in execs]

    assert asyncio.run(stop_under_them()) == [137] * 5
    assert pod.wait_exit(container)[0] == 137
    assert pod.exec(sibling, "true").exit_code == 0


def test_a_streaming_command_is_written_to_and_read_from(pod: Pod) -> None:
    container = pod.start(*SLEEP)
    script = "read x; echo got $x; echo err >&2; exit 5"
    reply = pod.node.cri(
        "Exec",
        container_id=container,
        cmd=["sh", "-c", script],
        stdin=True,
        stdout=True,
        stderr=True,
    )
    with open_stream(reply.url) as stream:
        stream.write(b"this\n")
        said = stream.read_all()
    assert said[STDOUT] == b"got this\n"
    assert said[STDERR] == b"err\n"
    assert b'"5"' in said[ERROR]


def test_a_streaming_command_with_a_terminal(pod: Pod) -> None:
    container = pod.start(*SLEEP)
    cmd = ["sh", "-c", "tty; read x; echo got $x"]
    reply = pod.node.cri(
        "Exec", container_id=container, cmd=cmd, stdin=True, stdout=True, tty=True
    )
    with open_stream(reply.url) as stream:
        shown = b""
        while message := stream.read():  # until it waits for us: a terminal echoes
            shown += message[1]
            if shown.endswith(b"\n"):
                break
        stream.write(b"this\n")
        said = stream.read_all()
    assert shown == b"/dev/pts/0\r\n"
    assert said[STDOUT] == b"this\r\ngot this\r\n"
    assert b'"Success"' in said[ERROR]


def commands(init: int) -> list[str]:
    """Return the command lines in the pid namespace of ``init``, sorted, without zombies."""
    return sorted(_lines(Path(f"/proc/{init}/ns/pid").readlink()))


def _lines(namespace: Path) -> Iterator[str]:
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "ns/pid").readlink() == namespace:
                line = (entry / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode()
                if line:
                    yield line
        except OSError:
            continue  # it ended while we looked
