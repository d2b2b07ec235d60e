"""The limit of a spool, its file, and disks that are full or have no directory for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.linux import fifos
from shim.linux.mounts import Mount, mount_all, unmount_all
from shim.stdio.spool import Overflow
from tests.stdio.conftest import LogLines, read_all, read_until, reader
from tests.stdio.overflowing import (
    MIB,
    MUCH,
    kept_of,
    put,
    read_to_marker,
    run_dry,
    run_to_written,
    spool_in,
)
from tests.stdio.whole.client import wait_until

if TYPE_CHECKING:
    from tests.stdio.conftest import Rig


pytestmark = pytest.mark.usefixtures("short_wait")


async def test_past_the_limit_the_newest_is_dropped_and_the_place_is_marked(rig: Rig) -> None:
    data = put(rig, "data", 10 * MIB)
    overflow = spool_in(rig.directory / "spool", MIB)
    async with rig.open(rig.path("in"), rig.path("out"), overflow=overflow) as stdio:
        script = f"cat {rig.directory}/data; touch {rig.directory}/written; cat"
        await run_to_written(rig, stdio, script)
        assert spool_sizes(rig) == [MIB]
        client = fifos.open_writer(rig.path("in"))
        out = reader(rig.path("out"))
        received = await read_to_marker(out)
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


@pytest.mark.slow
async def test_a_ring_that_comes_round_keeps_its_limit_and_every_byte(rig: Rig) -> None:
    """The bytes in the fifo are not those of the file by now."""
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
    rig: Rig, said: LogLines
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
    rig: Rig, said: LogLines
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
            wait = await run_to_written(rig, stdio, script)
            out = reader(rig.path("out"))
            received = await read_to_marker(out)
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


async def test_without_its_directory_a_spool_is_in_the_bundle(rig: Rig, said: LogLines) -> None:
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


async def test_without_any_directory_the_rest_is_dropped(rig: Rig, said: LogLines) -> None:
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
            received = await read_to_marker(out)
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
