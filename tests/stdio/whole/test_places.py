"""Where the output of a real container may go: a file, a full disk, nowhere, /dev/stdout."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shim.linux import fifos
from shim.linux.mounts import Mount, mount_all, unmount_all
from tests.frozen import file_helpers
from tests.stdio.conftest import read_all, write_all
from tests.stdio.whole.client import (
    WAIT_FOR_GO,
    Streams,
    close_stdin,
    ended,
    put_data,
    wait_asleep,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.rig import Rig


async def test_a_full_disk_keeps_what_fits_and_goes_on_when_there_is_room(rig: Rig) -> None:
    put_data(rig, "data", 3)
    small = rig.root / "small"
    small.mkdir()
    mount_all([Mount("tmpfs", "tmpfs", "", ["size=64k"])], str(small))
    log = small / "log"
    bundle = rig.bundle("c1", "sh", "-c", f"cat /data; touch /full; {WAIT_FOR_GO}; echo later")
    os.mkfifo(bundle / "log")
    manager = fifos.open_keep(str(bundle / "log"))
    try:
        task = await rig.start(bundle)
        await rig.run(task, bundle, stdout=f"file://{log}")
        await wait_until((rig.rootfs() / "full").exists)
        data = (rig.rootfs() / "data").read_bytes()
        # Nothing is left in the pipe once the last of it was refused.
        await wait_asleep(*file_helpers(rig.root))
        assert log.read_bytes() == data[: 64 << 10]
        mount_all([Mount("tmpfs", "tmpfs", "", ["remount", "size=1m"])], str(small))
        (rig.rootfs() / "go").touch()
        assert await ended(task, "c1") == 0
        assert log.read_bytes() == data[: 64 << 10] + b"later\n"
        lines = os.read(manager.number, 1 << 20).splitlines()
        said = [line for line in lines if b"output is being dropped" in line]
        assert len(said) == 1
        assert b"no space left" in said[0]
    finally:
        manager.close()
        unmount_all(str(small))


async def test_no_streams_are_dev_null_in_the_container(rig: Rig) -> None:
    script = "(for n in 0 1 2; do readlink /proc/$$/fd/$n; done) >/links; echo nobody hears"
    bundle = rig.bundle("c1", "sh", "-c", script)
    task = await rig.start(bundle)
    await rig.run(task, bundle)
    assert await ended(task, "c1") == 0
    assert (rig.rootfs() / "links").read_text().split() == ["/dev/null"] * 3


async def test_both_streams_are_appended_to_one_plain_file(rig: Rig) -> None:
    log = rig.root / "plain"
    log.write_text("before\n")
    bundle = rig.bundle("c1", "sh", "-c", "seq 100000; seq 100000 >&2")
    task = await rig.start(bundle)
    await rig.run(task, bundle, stdout=str(log), stderr=str(log))
    assert await ended(task, "c1") == 0
    data = log.read_bytes()
    assert data.startswith(b"before\n")
    assert len(data) == len(b"before\n") + 2 * sum(len(b"%d\n" % i) for i in range(1, 100_001))


@pytest.mark.parametrize("kind", ["directory", "socket", "loop"])
async def test_a_path_that_cannot_be_a_stream_is_refused_by_name_and_leaves_nothing(
    rig: Rig, kind: str
) -> None:
    bundle = rig.bundle("c1", "true")
    task = await rig.start(bundle)
    path = rig.root / kind
    WRONG[kind](path)
    with pytest.raises(GRPCError, match=str(path)) as caught:
        await task.Create(rig.create_request(bundle, stdout=str(path)), timeout=20)
    assert caught.value.status is Status.INVALID_ARGUMENT
    # The same id is free again.
    await rig.run(task, bundle)
    assert await ended(task, "c1") == 0


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


WRONG: dict[str, Callable[[Path], object]] = {
    "directory": Path.mkdir,
    "socket": _bind,
    "loop": lambda path: path.symlink_to(path),
}


async def test_dev_stdout_can_be_opened_again_inside_a_user_namespace(rig: Rig) -> None:
    def own_users(config: dict[str, Any]) -> None:
        mapping = [{"containerID": 0, "hostID": 100_000, "size": 65_536}]
        config["linux"]["namespaces"].append({"type": "user"})
        config["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}

    # The container's root is none of ours: its way in, and its own directory.
    rig.root.chmod(0o755)
    os.chown(rig.rootfs(), 100_000, 100_000)
    streams = Streams(rig, "c1")
    out, err = streams.reader("stdout"), streams.reader("stderr")
    script = "echo out >/dev/stdout; echo err >/proc/self/fd/2; cat </dev/stdin"
    bundle = rig.bundle("c1", "sh", "-c", script, change=own_users)
    task = await rig.start(bundle)
    client = fifos.open_keep(streams.path("stdin"))
    await write_all(client, b"in\n")
    options = rig.options(io_uid=100_000, io_gid=100_000)
    await rig.run(task, bundle, options=options, **streams.fields("stdin", "stdout", "stderr"))
    client.close()
    await task.CloseIO(close_stdin("c1"), timeout=5)
    with trio.fail_after(20):
        assert await read_all(err) == b"err\n"
        assert await read_all(out) == b"out\nin\n"
    assert await ended(task, "c1") == 0
