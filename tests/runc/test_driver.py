"""Running a runtime: its errors, its silence, its noise."""

from __future__ import annotations

import errno
import os
import re
import time
from typing import TYPE_CHECKING

import pytest
import trio

from shim.errors import NotFoundError, TimedOutError
from shim.reaper import open_reaper
from shim.runc.command import Runtime
from shim.runc.driver import Runc, RuntimeFailedError, RuntimeMissingError
from tests.e2e.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from shim.reaper import Reaper


@pytest.fixture
async def reaper() -> AsyncIterator[Reaper]:
    async with open_reaper() as reaper:
        yield reaper


@pytest.fixture
def fake(tmp_path: Path, reaper: Reaper) -> Callable[..., Runc]:
    """Make a runtime of a shell script, which has its arguments in ``$@``."""

    def make(script: str, limit: float = 20) -> Runc:
        path = tmp_path / "runc"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return Runc(Runtime(str(path), str(tmp_path)), reaper, limit)

    return make


async def test_the_output_of_a_command_comes_back(fake: Callable[..., Runc]) -> None:
    assert await fake('echo "$5" "$6"').run("state", "c1") == "state c1\n"


async def test_a_failure_is_told_in_the_runtimes_own_words(fake: Callable[..., Runc]) -> None:
    runc = fake("""echo '{"level":"error","msg":"cgroup is frozen"}' >&2; exit 1""")
    with pytest.raises(RuntimeFailedError, match="OCI runtime pause failed: cgroup is frozen"):
        await runc.run("pause", "c1")


async def test_a_failure_without_words_tells_its_status(fake: Callable[..., Runc]) -> None:
    with pytest.raises(RuntimeFailedError, match="exit status 3"):
        await fake("exit 3").run("pause", "c1")


@pytest.mark.parametrize(
    "words",
    [
        "container not running",
        "container does not exist",
        "os: process already finished",
        "container `c1` is not running",  # crun
        "error opening file `/run/r/c1/status`: No such file or directory",  # crun
        "cannot open directory",  # crun
        "loading container: file does not exist",  # gVisor
    ],
)
async def test_what_is_gone_is_not_found(fake: Callable[..., Runc], words: str) -> None:
    with pytest.raises(NotFoundError, match=words):
        await fake(f"""echo '{{"level":"error","msg":"{words}"}}' >&2; exit 1""").run("kill", "c1")


async def test_a_noisy_runtime_never_blocks_on_its_stderr(fake: Callable[..., Runc]) -> None:
    runc = fake("head -c 3000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo done >&2; exit 1")
    with trio.fail_after(20), pytest.raises(RuntimeFailedError, match="failed: done"):
        await runc.run("start", "c1")


async def test_a_command_is_not_waited_for_beyond_its_end(fake: Callable[..., Runc]) -> None:
    """A hook that stays behind with the runtime's stderr must not hold the call."""
    with trio.fail_after(5 * PATIENCE):
        assert await fake("sleep 60 & echo $!").run("start", "c1")


async def test_a_runtime_that_never_returns_is_killed_at_the_limit(
    fake: Callable[..., Runc], tmp_path: Path
) -> None:
    limit = 0.5 * PATIENCE  # by then the shell has started
    runc = fake(f"echo $$ > {tmp_path}/pid; exec sleep 60", limit=limit)
    before = time.monotonic()
    with pytest.raises(TimedOutError, match=re.escape(f"did not return within {limit:g} s")):
        await runc.run("create", "c1")
    assert time.monotonic() - before < 10 * PATIENCE
    assert not os.path.exists(f"/proc/{(tmp_path / 'pid').read_text().strip()}")  # noqa: PTH110


async def test_a_caller_that_gives_up_takes_the_runtime_with_it(
    fake: Callable[..., Runc], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "started")
    runc = fake(f"echo $$ > {tmp_path}/started; exec sleep 60")
    pid = ""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runc.run, "update", "c1")
        pid = (await trio.Path(tmp_path / "started").read_text()).strip()
        nursery.cancel_scope.cancel()
    assert not os.path.exists(f"/proc/{pid}")  # noqa: PTH110


async def test_stdin_arrives_whole(fake: Callable[..., Runc]) -> None:
    data = b"x" * 300_000
    assert await fake("wc -c").run("update", "c1", stdin=data) == "300000\n"


async def test_a_birth_that_fails_is_explained_by_its_log(
    fake: Callable[..., Runc], tmp_path: Path
) -> None:
    log = tmp_path / "log.json"
    log.write_text('{"level":"error","msg":"of an earlier attempt"}\n')
    runc = fake("""echo '{"level":"error","msg":"no such file"}' >> "$4"; exit 1""")
    with pytest.raises(RuntimeFailedError, match="OCI runtime create failed: no such file"):
        await runc.create_process("create", "c1", log=str(log), fds=None)
    with pytest.raises(RuntimeFailedError, match="exit status 1"):
        await fake("exit 1").create_process("create", "c1", log=str(log), fds=None)


async def test_a_birth_gone_wrong_is_never_not_found(
    fake: Callable[..., Runc], tmp_path: Path
) -> None:
    """A missing program in the container is no missing container."""
    runc = fake(
        """echo '{"level":"error","msg":"/x: executable file not found"}' >> "$4"; exit 1"""
    )
    with pytest.raises(RuntimeFailedError):
        await runc.create_process("exec", "c1", log=str(tmp_path / "log"), fds=None)


async def test_no_fd_stays_behind(fake: Callable[..., Runc]) -> None:
    before = os.listdir("/proc/self/fd")
    await fake("true").run("start", "c1")
    with pytest.raises(RuntimeFailedError):
        await fake("false").run("start", "c1")
    with pytest.raises(RuntimeMissingError):
        await Runc(Runtime("/nonexistent"), fake("true").reaper).run("start", "c1")
    assert os.listdir("/proc/self/fd") == before


async def test_a_command_that_no_fd_is_left_for_leaks_none(
    fake: Callable[..., Runc], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe2 = os.pipe2
    made: list[tuple[int, int]] = []

    def one_pipe(flags: int) -> tuple[int, int]:
        if made:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made.append(pipe2(flags))
        return made[0]

    runc, before = fake("true"), os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "pipe2", one_pipe)
    with pytest.raises(OSError, match="Too many open files"):
        await runc.run("start", "c1")
    assert os.listdir("/proc/self/fd") == before


async def test_the_real_runc_speaks_as_the_fakes_do(tmp_path: Path, reaper: Reaper) -> None:
    runc = Runc(Runtime("runc", str(tmp_path)), reaper)
    assert '"ociVersionMin"' in await runc.run("features")
    with pytest.raises(NotFoundError, match="does not exist"):
        await runc.run("kill", "nobody", "9")
    with pytest.raises(RuntimeFailedError, match=r"config\.json"):
        await runc.create_process(
            "create", "--bundle", str(tmp_path), "c1", log=str(tmp_path / "log"), fds=None
        )
