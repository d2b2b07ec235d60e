"""Output that nobody reads, under ``spool`` and ``drop``: pipes, with the tests as the manager."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.linux import fifos
from shim.linux.mounts import Mount, mount_all, unmount_all
from shim.stdio import overflow
from shim.stdio.spool import Overflow
from tests.stdio.conftest import read_all, read_some, read_until, reader
from tests.stdio.whole.client import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from shim.linux.fifos import Fd
    from shim.stdio.streams import Stdio
    from tests.stdio.conftest import Rig

MIB = 1 << 20
# More than a pipe and a fifo hold together.
MUCH = 5 * MIB
MARKER = re.compile(rb"\[trio-shim: (\d+) bytes of output dropped\]\n")


@pytest.fixture(autouse=True)
def short_wait(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a reader count as away sooner, where there is none anyway."""
    if "slow" not in request.node.name:
        monkeypatch.setattr(overflow, "AWAY_AFTER", 0.1)


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> capfd_lines:
    return capfd_lines(capfd)


class capfd_lines:  # noqa: N801 - reads as a function
    """What the shim's log says, which goes to standard error here."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, words: str) -> list[str]:
        return [line for line in self._capfd.readouterr().err.splitlines() if words in line]


def spool_in(directory: Path, limit: int = 64 * MIB) -> Overflow:
    return Overflow(limit, (str(directory),))


def put(rig: Rig, name: str, size: int, *, width: int = 7) -> bytes:
    """Put lines into a file for the process to write; return them."""
    data = b"".join(b"%0*d\n" % (width, i) for i in range(size // (width + 1)))
    (rig.directory / name).write_bytes(data)
    return data


async def run_dry(rig: Rig, stdio: Stdio, script: str) -> None:
    """Run ``script`` to its end, and until its pipe is empty again."""
    process = fifos.Fd(os.dup(stdio.child_fds[1]))
    wait = await rig.run(stdio, script)
    with trio.fail_after(20):
        assert (await wait()).exit_status == 0
    await wait_until(lambda: not fifos.unread(process))
    process.close()


def kept_of(received: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Check the marker in what was received of ``data``; return what is before and after it."""
    found = MARKER.search(received)
    assert found is not None, received[-200:]
    kept = received[: found.start()]
    assert kept.endswith(b"\n"), "it is on a line of its own"
    if not data.startswith(kept):
        kept = kept[:-1]
        assert not kept.endswith(b"\n")
    assert data.startswith(kept)
    assert len(kept) + int(found[1]) == len(data)
    return kept, received[found.end() :]


async def test_a_process_under_spool_never_stops_and_a_later_reader_has_it_all(rig: Rig) -> None:
    data = put(rig, "data", 50 * MIB)
    async with rig.open(
        stdout=rig.path("out"), overflow=spool_in(rig.directory / "spool")
    ) as stdio:
        wait = await rig.run(stdio, f"cat {rig.directory}/data")
        with trio.fail_after(20):
            assert (await wait()).exit_status == 0
        with trio.fail_after(2):
            await stdio.wait_read()  # nobody reads: nobody is waited for
        received = await read_all(reader(rig.path("out")))
        assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
        with trio.fail_after(2):
            await stdio.drain()


async def test_the_pipe_of_a_process_is_closed_while_its_output_is_stored(rig: Rig) -> None:
    """And nothing counts as stored once a reader has it."""
    put(rig, "data", MUCH)
    async with rig.open(
        stdout=rig.path("out"), overflow=spool_in(rig.directory / "spool")
    ) as stdio:
        wait = await rig.run(stdio, f"cat {rig.directory}/data")
        assert (await wait()).exit_status == 0
        [relay] = stdio._outputs
        with trio.fail_after(20):
            await relay.source_done.wait()
        assert relay.backlog
        assert relay.source.number < 0
        assert len(await read_all(reader(rig.path("out")))) == MUCH
        assert not relay.backlog


async def test_output_that_a_reader_has_is_not_pending_while_its_pipe_is_open(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(
        stdout=rig.path("out"), overflow=spool_in(rig.directory / "spool")
    ) as stdio:
        wait = await rig.run(stdio, "echo said; sleep 60 &")
        assert (await wait()).exit_status == 0
        [relay] = stdio._outputs
        with trio.fail_after(20):
            assert await read_some(out, 100) == b"said\n"
            await relay.wait_drained()
        assert not relay.source_done.is_set()
        assert not relay.backlog


@pytest.mark.slow
@pytest.mark.parametrize("width", [7, 10])
async def test_a_process_under_drop_never_stops_and_a_marker_says_what_is_missing(
    rig: Rig, width: int
) -> None:
    data = put(rig, "data", 50 * MIB, width=width)
    async with rig.open(rig.path("in"), rig.path("out"), overflow=Overflow()) as stdio:
        script = f"cat {rig.directory}/data; touch {rig.directory}/written; cat"
        process = fifos.Fd(os.dup(stdio.child_fds[1]))
        await rig.run(stdio, script)
        await wait_until((rig.directory / "written").exists)
        await wait_until(lambda: not fifos.unread(process))
        process.close()
        out = reader(rig.path("out"))
        received = b""
        while not MARKER.search(received):
            received += await read_some(out)
        kept, _ = kept_of(received, data)
        assert len(kept) >= MIB  # what a fifo holds
        client = fifos.open_writer(rig.path("in"))
        os.write(client.number, b"and what comes after\n")
        assert await read_until(out, 21) == b"and what comes after\n"
        client.close()
        stdio.close_stdin()
        assert await read_all(out) == b""


async def test_lines_written_one_by_one_fill_a_fifo_to_its_last_byte(rig: Rig) -> None:
    """Each in a page of its own, 256 of them would be all that is kept."""
    async with rig.open(stdout=rig.path("out"), overflow=Overflow()) as stdio:
        process = fifos.Fd(os.dup(stdio.child_fds[1]))
        await stdio.started()
        for number in range(5000):
            os.write(process.number, b"line %d\n" % number)
            if not number % 10:
                await trio.testing.wait_all_tasks_blocked()
        await wait_until(lambda: not fifos.unread(process))
        process.close()
        received = await read_all(reader(rig.path("out")))
    assert received == b"".join(b"line %d\n" % number for number in range(5000))


@pytest.mark.slow
@pytest.mark.parametrize("overflow", ["spool", "drop"])
async def test_a_slow_reader_sets_the_pace_and_misses_nothing(
    rig: Rig, overflow: str, said: capfd_lines
) -> None:
    data = put(rig, "data", 20 * MIB)
    # A directory that is none: whoever wanted to use it would say so.
    nowhere = rig.directory / "data"
    chosen = Overflow() if overflow == "drop" else spool_in(nowhere)
    out = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out"), overflow=chosen) as stdio:
        await rig.run(stdio, f"cat {rig.directory}/data")
        received = bytearray()
        while chunk := await read_some(out, 40_000):
            received += chunk
            await trio.sleep(0.001)
    out.close()
    assert received == data
    assert not said("dropped")


async def test_a_reader_that_comes_and_goes_loses_and_doubles_nothing(rig: Rig) -> None:
    digest, size = hashlib.sha256(), 100 * MIB
    block = os.urandom(MIB)
    (rig.directory / "data").write_bytes(block)
    for _ in range(100):
        digest.update(block)
    got = hashlib.sha256()
    script = f"for n in $(seq 100); do cat {rig.directory}/data; done"
    overflow = spool_in(rig.directory / "spool", 128 * MIB)
    async with rig.open(stdout=rig.path("out"), overflow=overflow) as stdio:
        wait = await rig.run(stdio, script)
        left = size
        for part in (1, 70_001, 3 * MIB, 4095, 20 * MIB + 17, MIB, 5):
            await trio.sleep(0.15)  # away for longer than is waited for
            out = reader(rig.path("out"))
            while part:
                chunk = await read_some(out, min(part, 1 << 16))
                got.update(chunk)
                part, left = part - len(chunk), left - len(chunk)
            out.close()
        assert (await wait()).exit_status == 0
        out = reader(rig.path("out"))
        while chunk := await read_some(out, 1 << 20):
            got.update(chunk)
            left -= len(chunk)
        out.close()
    assert left == 0
    assert got.digest() == digest.digest()


async def test_past_the_limit_the_newest_is_dropped_and_the_place_is_marked(rig: Rig) -> None:
    data = put(rig, "data", 10 * MIB)
    overflow = spool_in(rig.directory / "spool", MIB)
    async with rig.open(rig.path("in"), rig.path("out"), overflow=overflow) as stdio:
        script = f"cat {rig.directory}/data; touch {rig.directory}/written; cat"
        process = fifos.Fd(os.dup(stdio.child_fds[1]))
        await rig.run(stdio, script)
        await wait_until((rig.directory / "written").exists)
        await wait_until(lambda: not fifos.unread(process))
        process.close()
        assert spool_sizes(rig) == [MIB]
        client = fifos.open_writer(rig.path("in"))
        out = reader(rig.path("out"))
        received = b""
        while not MARKER.search(received):
            received += await read_some(out)
        os.write(client.number, b"and what comes after\n")
        client.close()
        stdio.close_stdin()
        received += await read_all(out)
    kept, after = kept_of(received, data)
    assert len(kept) >= 2 * MIB  # the fifo and the spool
    assert after == b"and what comes after\n"


def spool_sizes(rig: Rig) -> list[int]:
    """Return how large the spools are that we have open, which have no name."""
    sizes = []
    for number in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{number}"
        try:
            if os.readlink(path).startswith(f"{rig.directory}/spool/"):  # noqa: PTH115 - many
                sizes.append(os.stat(path).st_size)  # noqa: PTH116 - the same
        except FileNotFoundError:
            continue
    return sizes


async def test_a_spool_has_no_name_and_is_given_back_when_it_is_empty(rig: Rig) -> None:
    put(rig, "data", MUCH)
    overflow = spool_in(rig.directory / "spool")
    async with rig.open(rig.path("in"), rig.path("out"), overflow=overflow) as stdio:
        await rig.run(stdio, f"cat {rig.directory}/data; touch {rig.directory}/written; cat")
        await wait_until((rig.directory / "written").exists)
        await wait_until(lambda: spool_sizes(rig))
        assert (rig.directory / "spool").stat().st_mode & 0o777 == 0o700
        assert not list((rig.directory / "spool").iterdir())
        out = reader(rig.path("out"))
        await read_until(out, MUCH)
        assert not spool_sizes(rig)
        out.close()


async def test_a_ring_that_comes_round_keeps_its_limit_and_every_byte(rig: Rig) -> None:
    """What is in the fifo is not what the file holds by now."""
    overflow = spool_in(rig.directory / "spool", 2 * MIB + 4321)
    data = put(rig, "data", 20 * MIB)
    async with rig.open(stdout=rig.path("out"), overflow=overflow) as stdio:
        process = os.dup(stdio.child_fds[1])
        await stdio.started()
        os.set_blocking(process, False)
        written, received = 0, b""
        out = reader(rig.path("out"))
        largest = 0
        while written < len(data):
            # Less than fits, then less than is there: the reader never catches up.
            while written < len(received) + 3 * MIB and written < len(data):
                try:
                    written += os.write(process, data[written : written + 65_536])
                except BlockingIOError:
                    await trio.sleep(0.001)
            largest = max([largest, *spool_sizes(rig)])
            received += await read_until(out, MIB)
        os.close(process)
        received += await read_all(out)
    assert received == data
    assert MIB < largest <= 2 * MIB + 4321


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
async def test_on_a_full_disk_what_fits_is_kept_and_the_rest_is_dropped(
    rig: Rig, said: capfd_lines
) -> None:
    data = put(rig, "data", 10 * MIB)
    small = rig.directory / "small"
    small.mkdir()
    mount_all([Mount("tmpfs", "tmpfs", "", ["size=300k"])], str(small))
    try:
        async with rig.open(stdout=rig.path("out"), overflow=spool_in(small)) as stdio:
            await run_dry(rig, stdio, f"cat {rig.directory}/data")
            received = await read_all(reader(rig.path("out")))
            assert len(said("cannot be spooled")) == 1
    finally:
        unmount_all(str(small))
    kept, after = kept_of(received, data)
    assert not after
    assert len(kept) >= MIB + (256 << 10)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
async def test_a_disk_that_is_full_from_the_start_makes_it_drop_and_is_tried_again(
    rig: Rig, said: capfd_lines
) -> None:
    data = put(rig, "data", MUCH)
    small = rig.directory / "small"
    small.mkdir()
    mount_all([Mount("tmpfs", "tmpfs", "", ["size=64k"])], str(small))
    (small / "ballast").write_bytes(bytes(65536))
    try:
        async with rig.open(rig.path("in"), rig.path("out"), overflow=spool_in(small)) as stdio:
            script = f"cat {rig.directory}/data; touch {rig.directory}/written; "
            script += f"read x; cat {rig.directory}/data"
            process = fifos.Fd(os.dup(stdio.child_fds[1]))
            wait = await rig.run(stdio, script)
            await wait_until((rig.directory / "written").exists)
            await wait_until(lambda: not fifos.unread(process))
            process.close()
            out = reader(rig.path("out"))
            received = b""
            while not MARKER.search(received):
                received += await read_some(out)
            kept_of(received, data)
            mount_all([Mount("tmpfs", "tmpfs", "", ["remount", "size=20m"])], str(small))
            client = fifos.open_writer(rig.path("in"))
            os.write(client.number, b"\n")
            with trio.fail_after(10):
                assert (await wait()).exit_status == 0
            assert await read_all(out) == data
            client.close()
            assert len(said("cannot be spooled")) == 1
    finally:
        unmount_all(str(small))


async def test_without_its_directory_a_spool_is_in_the_bundle(rig: Rig, said: capfd_lines) -> None:
    data = put(rig, "data", MUCH)
    no_directory = str(rig.directory / "data" / "spool")
    bundle = rig.directory / "bundle"
    bundle.mkdir()
    overflow = Overflow(64 * MIB, (no_directory, str(bundle)))
    async with rig.open(stdout=rig.path("out"), overflow=overflow) as stdio:
        wait = await rig.run(stdio, f"cat {rig.directory}/data")
        await wait()
        assert await read_all(reader(rig.path("out"))) == data
    assert not said("spooled")


async def test_without_any_directory_the_rest_is_dropped(rig: Rig, said: capfd_lines) -> None:
    data = put(rig, "data", MUCH)
    nowhere = str(rig.directory / "data" / "spool")
    overflow = Overflow(64 * MIB, (nowhere, nowhere))
    script = f"cat {rig.directory}/data; touch {rig.directory}/written; read x; "
    async with rig.open(rig.path("in"), rig.path("out"), overflow=overflow) as stdio:
        process = fifos.Fd(os.dup(stdio.child_fds[1]))
        wait = await rig.run(stdio, script * 2)
        client = fifos.open_writer(rig.path("in"))
        for _ in range(2):
            await wait_until((rig.directory / "written").exists)
            await wait_until(lambda: not fifos.unread(process))
            out = reader(rig.path("out"))
            received = b""
            while not MARKER.search(received):
                received += await read_some(out)
            kept_of(received, data)
            out.close()
            (rig.directory / "written").unlink()
            os.write(client.number, b"\n")
        await wait()
        client.close()
        process.close()
    (line,) = said("cannot be spooled")
    assert "not a directory" in line
    assert nowhere in line


async def test_stderr_flows_while_stdout_is_spooled(rig: Rig) -> None:
    data = put(rig, "data", MUCH)
    err = reader(rig.path("err"))
    overflow = spool_in(rig.directory / "spool")
    async with rig.open(
        stdout=rig.path("out"), stderr=rig.path("err"), overflow=overflow
    ) as stdio:
        script = f"cat {rig.directory}/data; echo done >&2; exec 2>&-; read x < {rig.path('in')}"
        await rig.run(stdio, script)
        with trio.fail_after(10):
            assert await read_all(err) == b"done\n"
        fifos.open_writer(rig.path("in")).close()
        assert await read_all(reader(rig.path("out"))) == data


@pytest.mark.parametrize("overflow", ["spool", "drop"])
async def test_with_nobody_reading_or_writing_nothing_is_done(rig: Rig, overflow: str) -> None:
    put(rig, "data", MUCH)
    chosen = Overflow() if overflow == "drop" else spool_in(rig.directory / "spool")
    async with rig.open(stdout=rig.path("out"), stderr=rig.path("err"), overflow=chosen) as stdio:
        script = f"cat {rig.directory}/data; touch {rig.directory}/written; exec sleep 1000"
        others = children()  # daemons that other tests share
        wait = await rig.run(stdio, script)
        await wait_until((rig.directory / "written").exists)
        await trio.sleep(0.3)
        before = time.process_time()
        await trio.sleep(0.5)  # this is the measurement
        assert time.process_time() - before < 0.02
        await stdio.aclose()
        (pid,) = children() - others
        os.kill(pid, signal.SIGTERM)
        await wait()


def children() -> set[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return {int(word) for word in file.read().split()}


@pytest.mark.slow
async def test_a_reader_that_is_there_has_the_spool_before_the_exit_is_told(rig: Rig) -> None:
    data = put(rig, "data", 32 * MIB)
    overflow = spool_in(rig.directory / "spool")
    async with rig.open(stdout=rig.path("out"), overflow=overflow) as stdio:
        wait = await rig.run(stdio, f"cat {rig.directory}/data; sleep 0.3")
        received = bytearray()
        out = reader(rig.path("out"))

        async def read() -> None:
            await wait()
            while chunk := await read_some(out, 1 << 17):
                received.extend(chunk)
                await trio.sleep(0.01)  # so that it takes more than two seconds

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait()
            await trio.sleep(0.01)
            with trio.fail_after(12):
                await stdio.wait_read()
            nursery.cancel_scope.cancel()
        out.close()
    assert bytes(received) == data


async def test_the_drain_of_a_spool_nobody_reads_takes_its_time_and_no_more(rig: Rig) -> None:
    put(rig, "data", MUCH)
    overflow = spool_in(rig.directory / "spool")
    async with rig.open(stdout=rig.path("out"), overflow=overflow) as stdio:
        wait = await rig.run(stdio, f"cat {rig.directory}/data")
        await wait()
        began = trio.current_time()
        await stdio.drain(0.3)
        assert 0.3 <= trio.current_time() - began < 2


async def test_a_reader_that_comes_during_the_drain_has_it_all(rig: Rig) -> None:
    data = put(rig, "data", MUCH)
    received = []
    overflow = spool_in(rig.directory / "spool")
    async with rig.open(stdout=rig.path("out"), overflow=overflow) as stdio:
        wait = await rig.run(stdio, f"cat {rig.directory}/data")
        await wait()

        async def come() -> None:
            await trio.sleep(0.3)
            received.append(await read_all(reader(rig.path("out"))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come)
            with trio.fail_after(8):
                await stdio.drain()
    assert received == [data]


async def test_a_background_child_that_writes_on_does_not_delay_the_drain(rig: Rig) -> None:
    async def read(out: Fd) -> None:
        while await read_some(out):
            pass

    out = reader(rig.path("out"))
    async with rig.open(stdout=rig.path("out"), overflow=Overflow()) as stdio:
        wait = await rig.run(stdio, "yes & echo done")
        await wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, out)
            with trio.fail_after(3):
                await stdio.drain()
            nursery.cancel_scope.cancel()
        await stdio.aclose()
    out.close()
