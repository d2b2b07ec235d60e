from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.errors import InvalidError, NotFoundError
from shim.linux import fifos
from shim.linux.fifos import Fd
from shim.linux.mounts import Mount, mount_all, unmount_all
from shim.outputaddress import Address, parse_address
from shim.stdio.spool import Overflow
from tests.e2e.waiting import PATIENCE
from tests.stdio.conftest import read_all, read_some, read_until, reader

if TYPE_CHECKING:
    from tests.stdio.conftest import Rig

MANY = b"".join(b"%015d\n" % i for i in range(1 << 16)) * 100  # 100 MiB


async def test_no_streams_are_dev_null(rig: Rig) -> None:
    async with rig.open() as stdio:
        null = os.stat("/dev/null")  # noqa: PTH116 - compared with an fd's
        assert all(os.path.samestat(os.fstat(fd), null) for fd in stdio.child_fds)
        wait = await rig.run(stdio, "cat; echo out; echo err >&2")
        assert (await wait()).exit_status == 0
        await stdio.drain()
        stdio.resize(80, 25)  # which has no size, and is not the worse for it
        stdio.close_stdin()


async def test_each_stream_reaches_its_fifo_and_ends(rig: Rig) -> None:
    out, err = reader(rig.path("out")), reader(rig.path("err"))
    async with rig.open(stdout=rig.path("out"), stderr=rig.path("err")) as stdio:
        wait = await rig.run(stdio, "echo out; echo err >&2")
        assert await read_all(out) == b"out\n"
        assert await read_all(err) == b"err\n"
        await wait()


async def test_a_stream_left_out_is_dev_null(rig: Rig) -> None:
    err = reader(rig.path("err"))
    async with rig.open(stderr=rig.path("err")) as stdio:
        await rig.run(stdio, "path=$(readlink /proc/$$/fd/1); echo $path >&2")
        assert await read_all(err) == b"/dev/null\n"


async def test_both_streams_may_be_one_fifo(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out"), stderr=rig.path("out")) as stdio:
        await rig.run(stdio, "echo 1; echo 2 >&2")
        assert sorted((await read_all(out)).split()) == [b"1", b"2"]


async def test_a_slow_reader_gets_every_byte(rig: Rig) -> None:
    (rig.directory / "data").write_bytes(MANY)
    out = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out")) as stdio:
        await rig.run(stdio, f"cat {rig.directory}/data")
        received = bytearray()
        while chunk := await read_some(out, 40_000):
            received += chunk
            await trio.lowlevel.checkpoint()
        assert received == MANY
    out.close()


async def test_a_reader_that_goes_away_can_come_back(rig: Rig) -> None:
    async with rig.open(stdout=rig.path("out")) as stdio:
        wait = await rig.run(stdio, "seq 1000000")
        received = b""
        while len(received) < 4_000_000:
            out = reader(rig.path("out"))
            received += await read_some(out)
            out.close()
        received += await read_all(reader(rig.path("out")))
        assert received == b"".join(b"%d\n" % i for i in range(1, 1_000_001))
        assert (await wait()).exit_status == 0


async def test_a_late_reader_gets_what_was_written_and_the_end(rig: Rig) -> None:
    async with rig.open(stdout=rig.path("out")) as stdio:
        wait = await rig.run(stdio, "seq 100000")
        await wait()
        await stdio.drain()
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.fail_after(5 * PATIENCE):
            received = await read_all(reader(rig.path("out")))
        assert received == b"".join(b"%d\n" % i for i in range(1, 100_001))


async def test_waiting_for_a_reader_costs_no_cpu_time(rig: Rig) -> None:
    async with rig.open(stdout=rig.path("out"), stderr=rig.path("err")) as stdio:
        wait = await rig.run(stdio, "exec yes")
        await trio.sleep(0.3)  # both pipes fill
        before = time.process_time()
        await trio.sleep(0.5)  # this is the measurement
        assert time.process_time() - before < 0.05
        await stdio.aclose()
        assert (await wait()).exit_status == 128 + 13


@pytest.mark.parametrize("overflow", [None, Overflow()], ids=["block", "drop"])
async def test_an_end_that_comes_when_the_fifo_is_just_full_costs_no_cpu_time(
    rig: Rig, overflow: Overflow | None
) -> None:
    """splice reports a full sink also at the end of the source."""
    async with rig.open(stdout=rig.path("out"), overflow=overflow) as stdio:
        sink = stdio._outputs[0].sink
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(sink.number, bytes(4096))
        wait = await rig.run(stdio, "true")
        await wait()
        before = time.process_time()
        await trio.sleep(0.5)  # this is the measurement
        assert time.process_time() - before < 0.05
        with trio.fail_after(5 * PATIENCE):
            assert len(await read_all(reader(rig.path("out")))) == fifos.PIPE_SIZE


async def test_an_absent_reader_costs_the_drain_its_timeout(rig: Rig) -> None:
    async with rig.open(stdout=rig.path("out")) as stdio:
        wait = await rig.run(stdio, "head -c 1500000 /dev/zero")
        await wait()
        began = trio.current_time()
        await stdio.drain(0.2)
        assert 0.2 <= trio.current_time() - began < 3 * PATIENCE


async def test_a_background_child_does_not_delay_the_drain(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out")) as stdio:
        wait = await rig.run(stdio, "sleep 60 & seq 10000")
        await wait()
        with trio.fail_after(3 * PATIENCE):
            await stdio.drain(60)
        expected = b"".join(b"%d\n" % i for i in range(1, 10_001))
        assert await read_until(out, len(expected)) == expected
    out.close()


async def test_a_background_child_that_writes_does_not_delay_the_drain(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out")) as stdio, trio.open_nursery() as nursery:
        wait = await rig.run(stdio, "yes & echo done")
        nursery.start_soon(read_all, out)
        await wait()
        with trio.fail_after(3 * PATIENCE):
            await stdio.drain(60)
        await stdio.aclose()


async def test_plain_files_are_appended_to(rig: Rig) -> None:
    (rig.directory / "log").write_bytes(b"before\n")
    path = rig.path("log")
    async with rig.open(stdout=path, stderr=path) as stdio:
        wait = await rig.run(stdio, "echo out; echo err >&2")
        await wait()
        await stdio.drain()
    lines = (rig.directory / "log").read_bytes().splitlines()
    assert lines[0] == b"before"
    assert sorted(lines[1:]) == [b"err", b"out"]


async def test_a_file_address_makes_its_directories_and_takes_both_streams(rig: Rig) -> None:
    path = rig.directory / "a" / "b c"
    async with rig.open(stdout=f"file://{rig.directory}/a/b%20c", stderr="ignored") as stdio:
        wait = await rig.run(stdio, "echo out; echo err >&2; seq 100000")
        await wait()
        await stdio.drain()
    assert path.stat().st_mode & 0o777 == 0o644
    expected = b"out\n" + b"".join(b"%d\n" % i for i in range(1, 100_001))
    # Where the other stream comes in, maybe inside a line, is a matter of chance.
    assert path.read_bytes().replace(b"err\n", b"", 1) == expected


async def test_a_file_may_have_a_name_that_is_no_utf_8(rig: Rig) -> None:
    async with rig.open(stdout=f"file:{rig.directory}/caf%E9/log") as stdio:
        wait = await rig.run(stdio, "echo out")
        await wait()
        await stdio.drain()
    with open(os.fsencode(rig.directory) + b"/caf\xe9/log", "rb") as log:
        assert log.read() == b"out\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
async def test_a_full_disk_does_not_block_the_process(rig: Rig) -> None:
    small = rig.directory / "small"
    small.mkdir()
    mount_all([Mount("tmpfs", "tmpfs", "", ["size=64k"])], str(small))
    try:
        async with rig.open(stdout=f"file://{small}/log") as stdio:
            wait = await rig.run(stdio, "head -c 3000000 /dev/zero; echo more")
            with trio.fail_after(10):
                assert (await wait()).exit_status == 0
                await stdio.drain()
        assert (small / "log").stat().st_size == 65536
    finally:
        unmount_all(str(small))


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
async def test_a_missing_fifo_is_named(rig: Rig, stream: str) -> None:
    streams = {"stdout": rig.path("out")} | {stream: rig.path("nowhere")}
    with pytest.raises(NotFoundError, match="nowhere"):
        async with rig.open(**streams):
            pass


async def test_an_unknown_scheme_is_invalid(rig: Rig) -> None:
    with pytest.raises(InvalidError, match="ftp"):
        async with rig.open(stdout="ftp://host/path"):
            pass


async def test_opening_in_vain_leaves_nothing(rig: Rig) -> None:
    async with rig.open(rig.path("in"), rig.path("out"), rig.path("err")):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="chown needs root")
async def test_the_pipes_belong_to_the_user_of_the_container(rig: Rig) -> None:
    async with rig.open(rig.path("in"), rig.path("out"), uid=1000, gid=1001) as stdio:
        for fd in stdio.child_fds[:2]:
            assert (os.fstat(fd).st_uid, os.fstat(fd).st_gid) == (1000, 1001)


async def test_the_process_has_blocking_pipes(rig: Rig) -> None:
    async with rig.open(rig.path("in"), rig.path("out"), rig.path("err")) as stdio:
        assert all(os.get_blocking(fd) for fd in stdio.child_fds)


async def test_an_unlinked_fifo_still_delivers(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out")) as stdio:
        Path(rig.path("out")).unlink()
        await rig.run(stdio, "echo out")
        assert await read_all(out) == b"out\n"


async def test_a_process_that_closed_its_output_ends_the_stream_at_once(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out")) as stdio:
        process = Fd(os.dup(stdio.child_fds[1]))
        await stdio.started()
        os.write(process.number, b"last")
        process.close()
        with trio.fail_after(PATIENCE):
            assert await read_all(out) == b"last"


def test_the_query_of_a_logger_is_its_arguments_in_order() -> None:
    address = parse_address("binary:///usr/bin/my%20log?z=1&a=2&flag&z=9&e=x%26y+z")
    arguments = ("z", "1", "a", "2", "flag", "", "e", "x&y z")
    assert address == Address("binary", "/usr/bin/my log", arguments)


def test_a_path_is_taken_as_it_is() -> None:
    assert parse_address("/run/a%20b?c") == Address("path", "/run/a%20b?c")


async def test_what_a_runtime_says_before_it_fails_is_not_the_processes_output(rig: Rig) -> None:
    """runc writes its error to its stderr too, which is the pipe meant for the process."""
    out = reader(rig.path("err"))
    async with rig.open(stdout=rig.path("out"), stderr=rig.path("err")) as stdio:
        os.write(stdio.child_fds[2], b"runc create failed: no such file\n")
        await trio.testing.wait_all_tasks_blocked()
    assert not os.read(out.number, 100)
    out.close()
