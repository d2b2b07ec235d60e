"""Terminals of real containers and execs through the whole shim."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.api.task_pb2 import (
    ResizePtyRequest,
    StartRequest,
    StateRequest,
    WaitRequest,
)
from tests.loops import turns
from tests.stdio.conftest import read_some, read_until, write_all
from tests.stdio.whole.client import (
    MIB,
    Digest,
    Streams,
    close_stdin,
    digest_to_end,
    ended,
    wait_asleep,
    wait_until,
)

if TYPE_CHECKING:
    from shim.api.task_grpc import TaskStub
    from shim.linux.fifos import Fd
    from tests.process.rig import Rig

NUMBERS = b" ".join(b"%d" % i for i in range(1, 1_000_001)) + b"\r\n"


def at_terminal(config: dict[str, Any]) -> None:
    config["process"]["terminal"] = True
    config["annotations"] = {"io.kubernetes.cri.sandbox-id": "pod1"}


async def expect(fd: Fd, text: bytes, *, seconds: float = 20) -> bytes:
    """Read until ``text`` has come; return everything up to there."""
    seen = b""
    with trio.fail_after(seconds):
        while text not in seen:
            data = await read_some(fd, 1)
            assert data, f"the end before {text!r}: {seen!r}"
            seen += data
    return seen


class Shell:
    """A terminal with a shell, of the init ``c1`` or of an exec in it, and its client."""

    def __init__(self, streams: Streams, ids: dict[str, str]) -> None:
        self.ids = ids
        self.streams = streams
        self.out = streams.reader()

    async def type(self, text: bytes) -> None:
        client = self.streams.writer()
        await write_all(client, text)
        client.close()


async def open_shell(rig: Rig, kind: str, *args: str) -> tuple[TaskStub, Shell]:
    streams = Streams(rig, "shell")
    fields: dict[str, Any] = streams.fields("stdin", "stdout") | {"terminal": True}
    if kind == "init":
        shell = Shell(streams, {"id": "c1", "exec_id": ""})
        bundle = rig.bundle("c1", *args, change=at_terminal)
        task = await rig.start(bundle)
        await task.Create(rig.create_request(bundle, **fields), timeout=30)
    else:
        shell = Shell(streams, {"id": "c1", "exec_id": "e1"})
        bundle = rig.bundle("c1", "sleep", "1000")
        task = await rig.start(bundle)
        await rig.run(task, bundle)
        await task.Exec(rig.exec_request("c1", "e1", *args, **fields), timeout=10)
    return task, shell


@pytest.fixture(params=["init", "exec"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_long_output_comes_out_of_a_terminal_whole_each_time(rig: Rig) -> None:
    """Half of them are containers, half are execs; the output ends before any Delete."""
    # 0.6 MB: more than the terminal, the relay and the fifo hold together.
    command = ("seq", "-s", " ", "100000")
    whole = Digest.of(b" ".join(b"%d" % i for i in range(1, 100_001)) + b"\r\n")
    host = rig.bundle("host", "sleep", "1000", change=at_terminal)
    task = await rig.start(host)
    await rig.run(task, host, terminal=True)
    few = trio.CapacityLimiter(4)
    good = 0

    async def one(name: str, *, container: bool) -> None:
        nonlocal good
        streams = Streams(rig, name)
        out = streams.reader()
        fields: dict[str, Any] = streams.fields("stdout") | {"terminal": True}
        async with few:
            if container:
                await rig.run(task, rig.bundle(name, *command, change=at_terminal), **fields)
            else:
                await task.Exec(rig.exec_request("host", name, *command, **fields), timeout=20)
                await task.Start(StartRequest(id="host", exec_id=name), timeout=20)
            with trio.fail_after(30):
                assert await digest_to_end(out) == whole
            assert await ended(task, *([name] if container else ["host", name])) == 0
        good += 1

    with trio.fail_after(240):
        async with trio.open_nursery() as nursery:
            for number in range(turns(30, 100)):
                nursery.start_soon(partial(one, f"c{number}", container=True))
                nursery.start_soon(partial(one, f"e{number}", container=False))
    assert good == 2 * turns(30, 100)


async def test_the_reader_of_a_terminal_comes_and_goes_and_misses_nothing(rig: Rig) -> None:
    streams = Streams(rig, "c1")
    bundle = rig.bundle("c1", "seq", "-s", " ", "1000000", change=at_terminal)
    task = await rig.start(bundle)
    created = await rig.run(task, bundle, terminal=True, **streams.fields("stdout"))
    got = Digest()
    for part in (1, 100_003, MIB, 4095, MIB + 1):
        await wait_asleep(created.pid)
        out = streams.reader()
        with trio.fail_after(10):
            got.add(await read_until(out, part))
        out.close()
    await wait_asleep(created.pid)
    out = streams.reader()
    with trio.fail_after(20):
        while data := await read_some(out):
            got.add(data)
    out.close()
    assert got == Digest.of(NUMBERS)
    assert await ended(task, "c1") == 0


async def test_resizing_is_heard_whenever_there_is_a_process_and_harms_nothing_else(
    rig: Rig, kind: str
) -> None:
    script = "stty size; echo ready; read x; stty size; exit 7"
    task, shell = await open_shell(rig, kind, "sh", "-c", script)

    async def resize(width: int, height: int) -> None:
        await task.ResizePty(ResizePtyRequest(width=width, height=height, **shell.ids), timeout=5)

    if kind == "init":
        await resize(132, 43)  # created, and already at its terminal
    else:
        with pytest.raises(GRPCError) as caught:
            await resize(132, 43)
        assert caught.value.status is Status.FAILED_PRECONDITION
    await task.Start(StartRequest(**shell.ids), timeout=20)
    first = await expect(shell.out, b"ready\r\n")
    assert (b"43 132\r\n" in first) == (kind == "init")
    await resize(80, 25)
    await shell.type(b"\n")
    assert b"25 80\r\n" in await expect(shell.out, b"80\r\n")
    with trio.fail_after(10):
        assert (await task.Wait(WaitRequest(**shell.ids))).exit_status == 7
    with pytest.raises(GRPCError) as caught:
        await resize(1, 1)
    assert caught.value.status is Status.FAILED_PRECONDITION
    assert (await task.State(StateRequest(**shell.ids), timeout=5)).exit_status == 7
    assert await ended(task, *shell.ids.values()) == 7
    shell.out.close()


async def test_a_terminal_everybody_closed_and_somebody_opens_again_goes_on(
    rig: Rig, kind: str
) -> None:
    script = (
        "tty=$(readlink /proc/self/fd/0); echo first; exec <&- >&- 2>&-; "
        "until test -e /go; do sleep 0.02; done; exec <>$tty >&0; echo again; read x; echo $x"
    )
    task, shell = await open_shell(rig, kind, "sh", "-c", script)
    pid = (await task.Start(StartRequest(**shell.ids), timeout=20)).pid
    await expect(shell.out, b"first\r\n")
    await wait_until(lambda: not os.path.lexists(f"/proc/{pid}/fd/1"))
    await wait_asleep(rig.daemons[0])  # it has met the hang-up
    (rig.rootfs() / "go").touch()
    await expect(shell.out, b"again\r\n")
    await shell.type(b"and heard\n")
    await expect(shell.out, b"and heard\r\nand heard\r\n")  # the echo, and the answer
    assert await ended(task, *shell.ids.values()) == 0
    assert await digest_to_end(shell.out) == Digest()


async def test_control_d_ends_the_input_of_a_terminal_and_not_the_terminal(
    rig: Rig, kind: str
) -> None:
    task, shell = await open_shell(rig, kind, "sh", "-c", "cat; echo once more; cat; exit 8")
    await task.Start(StartRequest(**shell.ids), timeout=20)
    await shell.type(b"one\n")
    await expect(shell.out, b"one\r\none\r\n")
    await shell.type(b"\x04")
    await expect(shell.out, b"once more\r\n")
    await shell.type(b"two\n\x04")
    await expect(shell.out, b"two\r\ntwo\r\n")
    assert await ended(task, *shell.ids.values()) == 8
    shell.out.close()


async def test_a_large_paste_into_a_terminal_arrives_whole(rig: Rig, kind: str) -> None:
    data = os.urandom(2 * MIB)
    script = f"stty raw -echo; echo ready; head -c {len(data)} | sha256sum"
    task, shell = await open_shell(rig, kind, "sh", "-c", script)
    await task.Start(StartRequest(**shell.ids), timeout=20)
    await expect(shell.out, b"ready\n")
    with trio.fail_after(30):
        await shell.type(data)
    await expect(shell.out, hashlib.sha256(data).hexdigest().encode())
    assert await ended(task, *shell.ids.values()) == 0
    shell.out.close()


async def test_a_client_that_leaves_a_terminal_for_good_hangs_it_up(rig: Rig, kind: str) -> None:
    script = "read x; echo got $x; read y; exit 8"
    task, shell = await open_shell(rig, kind, "sh", "-c", script)
    await task.Start(StartRequest(**shell.ids), timeout=20)
    await shell.type(b"x\n")
    await expect(shell.out, b"got x\r\n")
    await task.CloseIO(close_stdin(**shell.ids), timeout=5)
    # The first process of a pid namespace has no SIGHUP; it sees the end of its input.
    assert await ended(task, *shell.ids.values()) == (8 if kind == "init" else 128 + 1)
    assert await digest_to_end(shell.out) == Digest()


@pytest.mark.parametrize("stdin", [False, True])
async def test_a_terminals_output_may_go_to_a_file(rig: Rig, kind: str, stdin: bool) -> None:
    log = rig.root / "new" / "log"
    streams = Streams(rig, "c1")
    fields: dict[str, Any] = {"terminal": True, "stdout": f"file://{log}"}
    if stdin:
        fields |= streams.fields("stdin")
    command = ("sh", "-c", "seq 200000; exit 9")
    if kind == "init":
        bundle = rig.bundle("c1", *command, change=at_terminal)
        task = await rig.start(bundle)
        await rig.run(task, bundle, **fields)
        assert await ended(task, "c1") == 9
    else:
        bundle = rig.bundle("c1", "sleep", "1000")
        task = await rig.start(bundle)
        await rig.run(task, bundle)
        await task.Exec(rig.exec_request("c1", "e1", *command, **fields), timeout=10)
        await task.Start(StartRequest(id="c1", exec_id="e1"), timeout=20)
        assert await ended(task, "c1", "e1") == 9
    expected = b"".join(b"%d\r\n" % i for i in range(1, 200_001))
    assert Digest.of(log.read_bytes()) == Digest.of(expected)
