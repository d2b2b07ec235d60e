from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from grpclib.const import Status as RpcStatus

from shim.errors import (
    InvalidError,
    NotFoundError,
    ShimError,
    TimedOutError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from shimctl.client import connect
from shimctl.values import Status
from tests.shimctl.peers import FakeTask, answering, serving

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("version", [2, 3])
async def test_a_shim_of_either_version_is_understood(tmp_path: Path, version: int) -> None:
    task = FakeTask(version, "redis")
    async with serving(tmp_path / "s", task) as address, connect(address) as shim:
        assert (await shim.connect("redis")).task_pid == 42
        assert (await shim.task("redis").state()).status is Status.RUNNING
        await shim.task("redis").kill(15)
    assert task.killed == [("redis", 15)]


async def test_a_call_without_an_answer_settles_no_version(tmp_path: Path) -> None:
    """A shim of version 2 that was slow once does not get version 3 calls from then on."""
    async with serving(tmp_path / "s", FakeTask(2)) as address, connect(address) as shim:
        with pytest.raises(TimedOutError):
            await shim.connect(timeout=0)
        assert shim.api_version == 0
        assert (await shim.connect()).version == "fake"
        assert shim.api_version == 2


@pytest.mark.parametrize("version", [2, 3])
async def test_what_no_version_has_is_unsupported(tmp_path: Path, version: int) -> None:
    async with serving(tmp_path / "s", FakeTask(version)) as address, connect(address) as shim:
        with pytest.raises(UnsupportedError):
            await shim.task("redis").pause()
        assert (await shim.connect()).version == "fake"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (RpcStatus.NOT_FOUND, NotFoundError),
        (RpcStatus.FAILED_PRECONDITION, WrongStateError),
        (RpcStatus.UNAVAILABLE, UnavailableError),
        (RpcStatus.UNKNOWN, ShimError),
        (RpcStatus.DATA_LOSS, ShimError),
    ],
)
async def test_a_status_becomes_its_error(
    tmp_path: Path, status: RpcStatus, error: type[ShimError]
) -> None:
    task = FakeTask(2, failure=status)
    async with serving(tmp_path / "s", task) as address, connect(address) as shim:
        with pytest.raises(error, match="as told") as caught:
            await shim.task("redis").kill(15)
    assert type(caught.value) is error


async def test_what_fits_into_no_request_is_invalid(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", FakeTask(3)) as address, connect(address) as shim:
        task = shim.task("redis")
        for said in (
            task.kill(-1),
            task.resize(-1, 24),
            task.resize(80, 1 << 32),
            shim.create("c", os.fsdecode(b"/not/utf-8/\xff")),
        ):
            with pytest.raises(InvalidError, match=r"cannot make a \w+Request: "):
                await said
        assert (await shim.connect()).version == "fake"


async def test_a_path_alone_is_an_address(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", FakeTask(3)), connect(str(tmp_path / "s")) as shim:
        assert (await shim.connect()).version == "fake"


async def test_nobody_listening_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        async with connect(f"unix://{tmp_path}/none"):
            pass


async def test_a_shim_that_goes_away_ends_the_call(tmp_path: Path) -> None:
    async with answering(tmp_path / "s", b"") as address, connect(address) as shim:
        with pytest.raises(UnavailableError, match="State failed: the shim closed"):
            await shim.task("redis").state()


async def test_a_silent_shim_costs_the_timeout(tmp_path: Path) -> None:
    async with answering(tmp_path / "s", None) as address, connect(address) as shim:
        with pytest.raises(TimedOutError):
            await shim.task("redis").state(timeout=0.1)
