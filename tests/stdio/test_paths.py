"""A path that is no stream is refused with its name; a link to a stream is accepted."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from shim.errors import InvalidError, NotFoundError
from tests.stdio.conftest import read_all, reader

if TYPE_CHECKING:
    from pathlib import Path

    from tests.stdio.conftest import Rig

WRONG = {
    "directory": InvalidError,
    "socket": InvalidError,
    "loop": InvalidError,
    "below-a-file/fifo": InvalidError,
    "dangling": NotFoundError,
}


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """Return a directory with everything that cannot be a stream."""
    (tmp_path / "directory").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "below-a-file").touch()
    return tmp_path


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"stdin": "{}"}, id="stdin"),
        pytest.param({"stdout": "{}"}, id="stdout"),
        pytest.param({"stdout": "fifo://{}"}, id="fifo"),
        pytest.param({"stderr": "{}"}, id="stderr"),
        pytest.param({"stdin": "{}", "terminal": True}, id="stdin of a terminal"),
        pytest.param({"stdout": "{}", "terminal": True}, id="terminal"),
    ],
)
@pytest.mark.parametrize("kind", WRONG)
async def test_a_path_that_is_no_stream_is_named(
    rig: Rig, wrong: Path, kind: str, options: dict[str, Any]
) -> None:
    path = str(wrong / kind)
    streams = {k: v.format(path) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(WRONG[kind], match=path):
        async with rig.open(**streams):
            pass


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("kind", ["directory", "socket", "loop", "below-a-file/log"])
async def test_a_log_that_cannot_be_made_is_named(
    rig: Rig, wrong: Path, kind: str, terminal: bool
) -> None:
    with pytest.raises(InvalidError, match=str(wrong / kind)):
        async with rig.open(stdout=f"file://{wrong}/{kind}", terminal=terminal):
            pass


async def test_a_link_to_a_fifo_is_the_fifo(rig: Rig) -> None:
    link = rig.directory / "link"
    link.symlink_to(rig.path("out"))
    out = reader(rig.path("out"))
    async with rig.open(stdout=str(link)) as stdio:
        await rig.run(stdio, "echo out")
        assert await read_all(out) == b"out\n"


async def test_a_device_may_stand_for_a_stream(rig: Rig) -> None:
    out = reader(rig.path("out"))
    async with rig.open(os.devnull, rig.path("out"), os.devnull) as stdio:
        wait = await rig.run(stdio, "cat; echo err >&2; echo out")
        assert await read_all(out) == b"out\n"
        assert (await wait()).exit_status == 0
