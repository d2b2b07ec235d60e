from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from shim.errors import NotFoundError, TimedOutError, UnavailableError
from shim.stdio import sinks
from tests.e2e.waiting import PATIENCE
from tests.stdio.playing import send_terminal, write
from tests.stdio.whole.client import wait_until

if TYPE_CHECKING:
    from shim.linux.fifos import Fd
    from tests.stdio.conftest import Rig


def logger(rig: Rig, script: str, scheme: str = "binary") -> str:
    path = rig.directory / "logger"
    path.write_text(f"#!/bin/sh\ncd {rig.directory}\n{script}\n")
    path.chmod(0o755)
    return f"{scheme}://{path}?first=1&second"


COPY = "{ready}; cat <&3 >stdout & cat <&4 >stderr & exec 3<&- 4<&-; wait; touch finished"


@pytest.mark.parametrize(
    ("scheme", "ready"), [("binary", "exec 5>&-"), ("binary-v2", "echo >&5; exec 5>&-")]
)
async def test_a_logger_gets_both_streams_to_their_end(rig: Rig, scheme: str, ready: str) -> None:
    async with rig.open(stdout=logger(rig, COPY.format(ready=ready), scheme)) as stdio:
        wait = await rig.run(stdio, "seq 100000; echo err >&2")
        await wait()
        await stdio.drain()
    expected = b"".join(b"%d\n" % i for i in range(1, 100_001))
    assert (rig.directory / "stdout").read_bytes() == expected
    assert (rig.directory / "stderr").read_bytes() == b"err\n"
    assert (rig.directory / "finished").exists()


async def test_a_logger_gets_its_arguments_and_only_two_variables(rig: Rig) -> None:
    script = 'echo "$@" >arguments; exec 5>&-; tr "\\0" "\\n" </proc/$$/environ >env; cat <&3'
    async with rig.open(stdout=logger(rig, script)) as stdio:
        wait = await rig.run(stdio, "true")
        await wait()
    assert (rig.directory / "arguments").read_text() == "first 1 second \n"
    environ = (rig.directory / "env").read_text().split()
    assert sorted(environ) == ["CONTAINER_ID=redis", "CONTAINER_NAMESPACE=test"]


async def test_a_loggers_arguments_may_be_any_bytes(rig: Rig) -> None:
    script = 'printf %s "$1" >arguments; exec 5>&-; cat <&3'
    address = logger(rig, script).replace("first=1&second", "caf%E9")
    async with rig.open(stdout=address) as stdio:
        wait = await rig.run(stdio, "true")
        await wait()
    assert (rig.directory / "arguments").read_bytes() == b"caf\xe9"


async def test_a_logger_that_is_never_ready_is_bounded_and_ended(rig: Rig) -> None:
    address = logger(rig, "echo $$ >pid; exec sleep 60")
    with pytest.raises(TimedOutError, match=f"{rig.directory}/logger"):
        async with rig.open(stdout=address, logger_timeout=1.5 * PATIENCE):
            pass
    pid = int((rig.directory / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_second_version_logger_must_say_so(rig: Rig) -> None:
    with pytest.raises(UnavailableError, match=f"{rig.directory}/logger"):
        async with rig.open(stdout=logger(rig, "exit 1", "binary-v2")):
            pass


async def test_a_logger_that_is_not_there_is_named(rig: Rig) -> None:
    with pytest.raises(NotFoundError, match="/nowhere/logger"):
        async with rig.open(stdout="binary:///nowhere/logger"):
            pass


async def test_opening_can_be_cancelled_while_a_logger_gets_ready(rig: Rig) -> None:
    pid = rig.directory / "pid"
    async with trio.open_nursery() as nursery:

        async def cancel() -> None:
            await wait_until(lambda: pid.exists() and pid.read_text())
            nursery.cancel_scope.cancel()

        nursery.start_soon(cancel)
        async with rig.open(stdout=logger(rig, "echo $$ >pid; exec sleep 60")):
            pytest.fail("it is not ready")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


async def test_the_death_of_a_logger_is_a_broken_pipe(rig: Rig) -> None:
    async with rig.open(stdout=logger(rig, "exec 5>&-; read x <&3; exit 1")) as stdio:
        wait = await rig.run(stdio, "exec yes")
        assert (await wait()).exit_status == 128 + 13


async def test_a_logger_that_does_not_end_is_asked_then_killed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "LOGGER_EOF", 0.3)
    monkeypatch.setattr(sinks, "LOGGER_TERM", 1.5 * PATIENCE)
    script = "trap 'touch asked' TERM; exec 5>&-; while :; do sleep 0.1; done"
    async with rig.open(stdout=logger(rig, script)) as stdio:
        began = time.monotonic()
        await stdio.aclose()
        assert 0.3 + 1.5 * PATIENCE <= time.monotonic() - began < 6 * PATIENCE
    assert (rig.directory / "asked").exists()


async def test_a_logger_may_serve_a_terminal(rig: Rig) -> None:
    address = logger(rig, COPY.format(ready="exec 5>&-"))
    async with rig.open(stdout=address, terminal=True) as stdio:
        process = send_terminal(stdio)
        await stdio.started()
        write(process, b"line")
        process.close()
        await stdio.drain()
    assert (rig.directory / "stdout").read_bytes() == b"line"
    assert (rig.directory / "finished").exists()


async def test_a_dead_logger_does_not_block_a_terminal(rig: Rig) -> None:
    async with rig.open(stdout=logger(rig, "exec 5>&-"), terminal=True) as stdio:
        process: Fd = send_terminal(stdio)
        child = rig.reaper.spawn(["seq", "300000"], fds={1: process.number})
        process.close()
        await stdio.started()
        with trio.fail_after(5 * PATIENCE):
            assert (await child.wait()).exit_status == 0
