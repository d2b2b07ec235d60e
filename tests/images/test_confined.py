"""The confinement of the process that reads an image: it ends at its limits, at a Ctrl-C, and
in one line.
"""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from shim.errors import InvalidError, NotFoundError, ShimError, UnsupportedError
from shim.scope import background
from shimctl.images import confined, reference
from shimctl.images.confined import check_layers, describe_archive
from tests.e2e.waiting import PATIENCE
from tests.images.layouts import HOST, Layer, Layout
from tests.images.test_archives import END, header, record
from tests.images.test_source import docker_archive

if TYPE_CHECKING:
    from collections.abc import Callable

DIGEST = "sha256:feed"


def ignore(_: int) -> None:
    pass


def layer(path: Path, data: bytes) -> list[tuple[Path, str]]:
    path.write_bytes(data)
    return [(path, DIGEST)]


def endless_links(count: int) -> bytes:
    """Make a small file that has to be remembered: links that lead out, each in its own place."""
    link = tarfile.TarInfo()
    link.type, link.linkname = tarfile.SYMTYPE, "/" + "t" * 90
    blocks = []
    for number in range(count):
        link.name = f"{number:090d}"
        blocks.append(link.tobuf(tarfile.GNU_FORMAT))
    return gzip.compress(b"".join(blocks), compresslevel=1)


async def test_a_layer_that_is_all_right_passes_and_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for number in range(2):
        one = Layer()
        for name in range(3000):
            one.file(f"{number}/{name}", b"x" * 600)
        files += layer(tmp_path / f"l{number}", one.bytes())
    told: list[int] = []
    await check_layers(files, told.append)
    assert told == sorted(told)
    assert all(0 < at <= sum(path.stat().st_size for path, _ in files) for at in told)


async def test_no_layers_are_all_right() -> None:
    await check_layers([], ignore)


async def test_each_error_keeps_its_kind_and_its_line(tmp_path: Path) -> None:
    for data, kind, text in (
        (Layer().file("../x").bytes(), InvalidError, r"its entry '\.\./x': it leads out"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), UnsupportedError, "zstd"),
        (b"no tar" * 200, InvalidError, "layer sha256:feed is not a tar"),
    ):
        with pytest.raises(kind, match=text):
            await check_layers(layer(tmp_path / "l", data), ignore)
    with pytest.raises(NotFoundError, match="there is no file /nonexistent"):
        await describe_archive(reference.parse("oci-archive:/nonexistent"), HOST)


@pytest.mark.parametrize(
    "data",
    [
        header(tarfile.XHDTYPE, b"9" * 2_000_000),
        header(tarfile.XHDTYPE, b"9" * 1_000_000),
        header(tarfile.GNUTYPE_LONGNAME, size=1 << 32) + gzip.compress(b""),
        header(tarfile.XGLTYPE, record("a", "b" * 500_000)) * 50,
        header(tarfile.REGTYPE, name="x" * 90) * 200 + header(tarfile.XHDTYPE, b"1 " * 5000),
    ],
    ids=["two million digits", "a million digits", "4 GiB name", "globals", "late"],
)
async def test_a_small_layer_with_a_header_without_end_is_refused_at_once(
    tmp_path: Path, data: bytes
) -> None:
    files = layer(tmp_path / "l", gzip.compress(data + END))
    begun = time.monotonic()
    with pytest.raises(InvalidError, match="is not a tar"):
        await check_layers(files, ignore)
    assert time.monotonic() - begun < 5 * PATIENCE


async def test_a_layer_that_needs_more_memory_than_any_should_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confined, "MEMORY", 40 << 20)
    files = layer(tmp_path / "l", endless_links(60_000))
    with pytest.raises(InvalidError, match="layer sha256:feed: it takes more than 40 MiB"):
        await check_layers(files, ignore)


async def test_a_layer_that_takes_more_time_than_any_should_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confined, "_CPU_TIME", 1)
    monkeypatch.setattr(confined, "_CPU_TIME_PER_MIB", 0)
    data = header(tarfile.REGTYPE, name="x" * 90) * 200_000
    files = layer(tmp_path / "l", gzip.compress(data, compresslevel=1))
    with pytest.raises(InvalidError, match="more than 1 s of processor time"):
        await check_layers(files, ignore)


async def test_giving_up_ends_the_child_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    before = set(_children())
    with trio.move_on_after(1) as scope:
        # The fifo has no writer: the child waits in open() without end.
        await check_layers([(fifo, DIGEST)], ignore)
    assert scope.cancelled_caught
    assert set(_children()) <= before


async def test_a_child_that_is_killed_is_not_said_to_take_too_much_time(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    before = set(_children())

    async def kill() -> None:
        with trio.fail_after(30 * PATIENCE):
            while not (new := set(_children()) - before):
                await trio.sleep(0.01)
        os.kill(int(new.pop()), signal.SIGKILL)

    with pytest.raises(ShimError, match="layer sha256:feed: the child process was killed"):
        async with background(kill):
            await check_layers([(fifo, DIGEST)], ignore)


async def test_a_configuration_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confined, "_MAX_OUTPUT", 1000)
    path = docker_archive(tmp_path / "a.tar", "a", label="x" * 1_000_000)
    with pytest.raises(InvalidError, match=r"a\.tar: its configuration is too long"):
        await describe_archive(reference.parse(f"docker-archive:{path}"), HOST)


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


@pytest.mark.e2e
@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_ctrl_c_ends_the_check_of_a_layer_at_once(
    tmp_path: Path, layout: Layout, number: signal.Signals
) -> None:
    slow = gzip.compress(bytes(1 << 20), compresslevel=9)
    name = header(tarfile.REGTYPE, size=(6 << 30), name="zeros")
    image = layout.add("latest", gzip.compress(name) + slow * 6144)
    command = [sys.executable, "-m", "shimctl", "run", image, "c"]
    env = {**os.environ, "SHIMCTL_IMAGES": str(tmp_path / "store")}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE) as process:
        _wait_for(lambda: "confined" in _command_lines_below(process.pid))
        begun = time.monotonic()
        process.send_signal(number)
        process.wait(10 * PATIENCE)
        assert time.monotonic() - begun < 5 * PATIENCE
        assert process.returncode != 0
    assert "confined" not in _command_lines_below(process.pid)


def _wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30 * PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _command_lines_below(pid: int) -> str:
    text = ""
    for task in Path("/proc").glob(f"{pid}/task/*/children"):
        with suppress(OSError):  # the thread or a child has ended
            for child in task.read_text().split():
                text += Path(f"/proc/{child}/cmdline").read_text()
    return text
