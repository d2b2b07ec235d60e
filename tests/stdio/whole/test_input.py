"""Input of real containers through the whole shim: every byte, and the end when it is meant.

A process sees the end of its input once the client's end is closed and CloseIO
has been called, in either order, and not before.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio

from shim.api.task_pb2 import DeleteRequest, StartRequest, WaitRequest
from tests.stdio.conftest import read_all, read_until, write_all
from tests.stdio.whole.client import MIB, Streams, close_stdin, wait_asleep

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub
    from tests.process.rig import Rig


class Fed:
    """A process that is fed: the init ``c1``, or the exec ``e1`` of a sleeping init."""

    def __init__(self, rig: Rig, task: TaskStub, exec_id: str) -> None:
        self.rig = rig
        self.task = task
        self.ids = {"id": "c1", "exec_id": exec_id}
        self.streams = Streams(rig, "fed")
        self.out = self.streams.reader()

    @classmethod
    async def add(cls, rig: Rig, kind: str, *args: str) -> Fed:
        """Create ``args`` and do not start it."""
        bundle = rig.bundle("c1", *(args if kind == "init" else ("sleep", "1000")))
        task = await rig.start(bundle)
        fed = cls(rig, task, "" if kind == "init" else "e1")
        fields: dict[str, Any] = fed.streams.fields("stdin", "stdout")
        if kind == "init":
            await task.Create(rig.create_request(bundle, **fields), timeout=30)
        else:
            await rig.run(task, bundle)
            await task.Exec(rig.exec_request("c1", "e1", *args, **fields), timeout=10)
        return fed

    async def start(self) -> int:
        return (await self.task.Start(StartRequest(**self.ids), timeout=30)).pid

    async def close(self) -> None:
        await self.task.CloseIO(close_stdin(**self.ids), timeout=5)

    async def output(self, *, seconds: float = 20) -> bytes:
        """Return all that comes out, after a good end."""
        with trio.fail_after(seconds):
            data = await read_all(self.out)
            assert (await self.task.Wait(WaitRequest(**self.ids))).exit_status == 0
            await self.task.Delete(DeleteRequest(**self.ids))
        return data


@pytest.fixture(params=["init", "exec"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_hundred_mebibytes_go_in(rig: Rig, kind: str) -> None:
    fed = await Fed.add(rig, kind, "sha256sum")
    await fed.start()
    digest = hashlib.sha256()
    client = fed.streams.writer()
    with trio.fail_after(60):
        for _ in range(100):
            data = os.urandom(MIB)
            digest.update(data)
            await write_all(client, data)
    client.close()
    await fed.close()
    assert await fed.output(seconds=30) == f"{digest.hexdigest()}  -\n".encode()


async def test_closed_before_the_start_it_still_delivers_what_was_sent(
    rig: Rig, kind: str
) -> None:
    fed = await Fed.add(rig, kind, "cat")
    # An exec has no reader yet: a client opens its end as it would a file.
    client = os.open(fed.streams.path("stdin"), os.O_RDWR)
    os.write(client, b"x\n")
    await fed.close()
    await fed.close()
    await fed.start()
    with trio.fail_after(10):
        assert await read_until(fed.out, 2) == b"x\n"
    os.close(client)
    assert await fed.output() == b""


async def test_closed_while_bytes_are_on_their_way_it_ends_after_them(rig: Rig, kind: str) -> None:
    # The process waits before it reads, so that the pipes are full at CloseIO.
    wait = "until test -e /go; do sleep 0.02; done; exec cat"
    fed = await Fed.add(rig, kind, "sh", "-c", wait)
    await fed.start()
    data = os.urandom(5 * MIB)
    client = fed.streams.writer()

    async def send() -> None:
        await write_all(client, data)
        client.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await fed.close()
        await fed.close()
        (rig.rootfs() / "go").touch()
        assert await fed.output() == data


async def test_closing_after_the_client_ends_it(rig: Rig, kind: str) -> None:
    fed = await Fed.add(rig, kind, "cat")
    await fed.start()
    client = fed.streams.writer()
    await write_all(client, b"x\n")
    client.close()
    with trio.fail_after(10):
        assert await read_until(fed.out, 2) == b"x\n"
    await fed.close()
    await fed.close()
    assert await fed.output() == b""


async def test_closing_after_the_process_ended_is_no_error(rig: Rig, kind: str) -> None:
    fed = await Fed.add(rig, kind, "true")
    await fed.start()
    await fed.task.Wait(WaitRequest(**fed.ids), timeout=20)
    await fed.close()
    await fed.close()
    assert await fed.output() == b""


async def test_clients_that_come_and_go_are_one_input_without_an_end(rig: Rig, kind: str) -> None:
    # `read` fails at the end of input; then the loop would report it and end.
    script = "while read line; do echo got $line; done; echo the end"
    fed = await Fed.add(rig, kind, "sh", "-c", script)
    pid = await fed.start()
    for number in range(5):
        client = fed.streams.writer()
        await write_all(client, b"%d\n" % number)
        client.close()
        with trio.fail_after(10):
            assert await read_until(fed.out, 6) == b"got %d\n" % number
        await wait_asleep(pid)
    await fed.close()
    assert await fed.output() == b"the end\n"


async def test_a_client_that_dies_half_way_ends_nothing(rig: Rig, kind: str) -> None:
    fed = await Fed.add(rig, kind, "cat")
    await fed.start()
    path = fed.streams.path("stdin")
    with trio.fail_after(20):
        dying = ["sh", "-c", f"exec >{path}; echo from one who dies; kill -9 $$"]
        await trio.run_process(dying, check=False)
        client = fed.streams.writer()
        await write_all(client, b"from another\n")
        client.close()
    await fed.close()
    assert await fed.output() == b"from one who dies\nfrom another\n"
