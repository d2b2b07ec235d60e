from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import trio
import trio.testing

from shim.linux.fifos import Fd
from tests.stdio.conftest import read_all, read_some, read_until, reader, write_all, writer

if TYPE_CHECKING:
    from tests.stdio.conftest import Rig

MANY = b"".join(b"%015d\n" % i for i in range(1 << 16)) * 100  # 100 MiB


async def _is_waiting(fd: Fd) -> bool:
    with trio.move_on_after(0.05):
        await read_some(fd)
        return False
    return True


async def test_stdin_ends_when_the_client_and_the_manager_have_closed_it(rig: Rig) -> None:
    async with rig.open(rig.path("in"), rig.path("out")) as stdio:
        process = Fd(os.dup(stdio.child_fds[0]))
        await stdio.started()
        client = writer(rig.path("in"))
        await write_all(client, b"one")
        assert await read_until(process, 3) == b"one"
        client.close()
        assert await _is_waiting(process)
        client = writer(rig.path("in"))  # an attach after a detach
        await write_all(client, b"two")
        stdio.close_stdin()
        stdio.close_stdin()
        assert await read_until(process, 3) == b"two"
        await write_all(client, b"three")
        assert await read_until(process, 5) == b"three"
        client.close()
        assert await read_all(process) == b""


async def test_a_hundred_mebibytes_arrive_before_the_end(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(rig.path("in"), rig.path("out")) as stdio, trio.open_nursery() as nursery:
        client = writer(rig.path("in"))

        async def send() -> None:
            await write_all(client, MANY)
            client.close()
            stdio.close_stdin()

        await rig.run(stdio, "exec cat")
        nursery.start_soon(send)
        assert await read_all(out) == MANY


async def test_stdin_may_be_closed_before_the_process_starts(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(rig.path("in"), rig.path("out")) as stdio:
        client = writer(rig.path("in"))
        await write_all(client, b"early")
        client.close()
        stdio.close_stdin()
        await rig.run(stdio, "exec cat")
        assert await read_all(out) == b"early"


async def test_stdin_may_be_closed_after_the_process_ended(rig: Rig) -> None:
    async with rig.open(rig.path("in"), rig.path("out")) as stdio:
        wait = await rig.run(stdio, "true")
        await wait()
        stdio.close_stdin()
        await stdio.aclose()
        stdio.close_stdin()


async def test_a_process_that_closes_its_stdin_does_not_make_us_spin(rig: Rig) -> None:
    async with rig.open(rig.path("in"), rig.path("out")) as stdio:
        wait = await rig.run(stdio, "exec <&-; exec sleep 2")
        client = writer(rig.path("in"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        os.write(client.number, b"nobody reads this")
        await trio.testing.wait_all_tasks_blocked(0.05)
        before = time.process_time()
        await trio.sleep(0.3)  # this is the measurement
        assert time.process_time() - before < 0.05
        client.close()
        await stdio.aclose()
        await wait()


async def test_a_process_that_does_not_read_costs_no_cpu_time(rig: Rig) -> None:
    async with rig.open(rig.path("in"), rig.path("out")) as stdio:
        process = Fd(os.dup(stdio.child_fds[0]))
        await stdio.started()
        client = writer(rig.path("in"))
        with trio.move_on_after(0.2):
            await write_all(client, b"x" * (8 << 20))
        before = time.process_time()
        await trio.sleep(0.3)  # this is the measurement
        assert time.process_time() - before < 0.05
        client.close()
        process.close()


async def test_stdin_may_be_a_file(rig: Rig) -> None:
    (rig.directory / "file").write_bytes(b"text")
    out = reader(rig.path("out"))
    async with rig.open(rig.path("file"), rig.path("out")) as stdio:
        await rig.run(stdio, "exec cat")
        assert await read_all(out) == b"text"
