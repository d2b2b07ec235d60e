"""A socket that is not a ttrpc server, met by all three faces of the library."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import shimctl
from shim.errors import (
    InvalidError,
    ShimError,
    TimedOutError,
    UnavailableError,
    UnsupportedError,
)
from shimctl import aio, blocking
from tests.shimctl.strangers import STRANGERS, listening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT = 0.3  # s that a call may last
BOUND = 20  # s for what should last no longer than that, on a slow machine


def on_trio(address: str) -> Any:
    async def main() -> Any:
        async with shimctl.connect(address) as shim:
            return await shim.task("redis").state(timeout=TIMEOUT)

    return trio.run(main)


def on_asyncio(address: str) -> Any:
    async def main() -> Any:
        async with aio.connect(address) as shim:
            return await shim.task("redis").state(timeout=TIMEOUT)

    return asyncio.run(main())


def in_threads(address: str) -> Any:
    with blocking.connect(address) as shim:
        return shim.task("redis").state(timeout=TIMEOUT)


FACES = {"trio": on_trio, "asyncio": on_asyncio, "threads": in_threads}

# The error for each, and its text.
ERRORS: dict[str, tuple[type[ShimError], str]] = {
    "closes at once": (UnavailableError, "State failed: the shim closed the connection"),
    "closes after the request": (
        UnavailableError,
        "State failed: the shim closed the connection",
    ),
    "never answers": (TimedOutError, "no reply to State within"),
    "an HTTP server": (ShimError, "is not a ttrpc server"),
    "an HTTP server that closes": (ShimError, "is not a ttrpc server"),
    "an SSH server": (ShimError, "is not a ttrpc server"),
    "garbage": (ShimError, "is not a ttrpc server"),
    "half a header": (TimedOutError, "no reply to State within"),
    "a frame cut short": (UnavailableError, "State failed: the shim closed the connection"),
    "an oversize frame": (ShimError, "over the limit"),
    "no Response": (ShimError, "not a ttrpc Response"),
    "no StateResponse": (ShimError, r"not a containerd\.task\.v3\.StateResponse"),
    "a stream nobody opened": (ShimError, "is not a ttrpc server"),
    "an even stream": (ShimError, "is not a ttrpc server"),
    "another kind of frame": (TimedOutError, "no reply to State within"),
}


@pytest.fixture(params=FACES)
def ask(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    """Ask a shim for a state, on each face; see that nothing is left open afterwards."""
    before, threads = open_files(), set(threading.enumerate())
    face: Callable[[str], Any] = FACES[request.param]
    face_ran = False

    def bounded(address: str) -> Any:
        nonlocal face_ran
        face_ran = True
        began = time.monotonic()
        try:
            return face(address)
        finally:
            assert time.monotonic() - began < BOUND

    yield bounded
    assert face_ran
    assert open_files() == before
    assert set(threading.enumerate()) <= threads  # trio keeps idle ones of others for a while


def open_files() -> list[str]:
    names = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            names.append(f"{path.name} {path.readlink()}")
        except FileNotFoundError:
            continue  # that of the directory itself
    return sorted(names)


def test_every_stranger_has_its_error() -> None:
    assert set(ERRORS) == set(STRANGERS)


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_is_a_clear_error_in_bounded_time(
    ask: Callable[[str], Any], name: str, tmp_path: Path
) -> None:
    error, text = ERRORS[name]
    with (
        listening(tmp_path / "s", STRANGERS[name]) as address,
        pytest.raises(ShimError, match=text) as caught,
    ):
        ask(address)
    assert type(caught.value) is error
    assert not isinstance(caught.value, UnsupportedError)


def test_nobody_there(ask: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no process listens"):
        ask(f"unix://{tmp_path}/none")


def test_a_file_that_is_no_socket(ask: Callable[[str], Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    with pytest.raises(UnavailableError, match="no process listens"):
        ask(f"unix://{tmp_path}/file")


@pytest.mark.parametrize("address", ["", "unix:///" + "x" * 200])
def test_what_can_be_no_address(ask: Callable[[str], Any], address: str) -> None:
    with pytest.raises(InvalidError):
        ask(address)


@pytest.mark.parametrize("name", ["an HTTP server", "never answers", "closes at once"])
def test_strangers_are_findings_of_a_list(name: str, tmp_path: Path) -> None:
    """Of all three lists, the same."""

    async def on_trio() -> list[shimctl.Found]:
        return await shimctl.list_shims(socket_dir=tmp_path)

    def ours(found: list[shimctl.Found]) -> list[shimctl.Found]:
        return [each for each in found if str(tmp_path) in each.address]

    with listening(tmp_path / "s", STRANGERS[name]) as address:
        lists = [
            ours(trio.run(on_trio)),
            ours(asyncio.run(aio.list_shims(socket_dir=tmp_path))),
            ours(blocking.list_shims(socket_dir=tmp_path)),
        ]
    health = "silent" if name == "never answers" else "not a shim"
    assert [[(f.address, f.health) for f in found] for found in lists] == [[(address, health)]] * 3
