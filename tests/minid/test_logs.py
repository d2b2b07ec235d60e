"""Logs: every byte once, in files of a limited size, when the writer dies at any moment."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from minid.logs import LogFile, copy

EXAMPLES = Path(__file__).parents[2] / "examples"


def files(path: Path) -> list[Path]:
    """The files of a log, oldest first."""
    older = sorted(path.parent.glob(f"{path.name}.*"), key=lambda p: -int(p.suffix[1:]))
    return [one for one in (*older, path) if one.exists()]


def whole(path: Path) -> bytes:
    return b"".join(one.read_bytes() for one in files(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "web.log"


def fill(log: LogFile, data: bytes) -> None:
    """Pass ``data`` through a pipe, in pieces that fit."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    for i in range(0, len(data), 4096):
        os.write(writer, data[i : i + 4096])
        with suppress(BlockingIOError):
            while log.move_from(reader):
                pass
    os.close(writer)
    while log.move_from(reader):
        pass
    os.close(reader)


def test_a_log_goes_on_where_it_was(path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        log = LogFile(path, 1 << 20, 3)
        fill(log, text)
        log.close()
    assert path.read_bytes() == b"one\ntwo\n"


def test_files_are_of_about_the_size_with_whole_lines_and_the_oldest_go(path: Path) -> None:
    log = LogFile(path, 64 << 10, 3)
    lines = [b"line %d\n" % n for n in range(60_000)]
    data = b"".join(lines)
    fill(log, data)
    log.close()
    kept = files(path)
    assert len(kept) == 3
    for one in kept[:-1]:
        assert 64 << 10 <= one.stat().st_size < (64 << 10) + len(b"line 59999\n")
    assert data.endswith(whole(path))


def test_lines_written_one_by_one_stay_whole_in_their_file(path: Path) -> None:
    log = LogFile(path, 4096, 100)
    reader, writer = os.pipe2(os.O_NONBLOCK)
    for n in range(3000):
        os.write(writer, b"line %d\n" % n)
        log.move_from(reader)
    assert all(one.read_bytes().endswith(b"\n") for one in files(path))
    assert all(one.read_bytes().startswith(b"line") for one in files(path))
    assert whole(path) == b"".join(b"line %d\n" % n for n in range(3000))
    os.close(reader)
    os.close(writer)
    log.close()


def test_what_has_no_lines_is_cut_all_the_same(path: Path) -> None:
    log = LogFile(path, 8192, 1000)
    fill(log, b"x" * 200_000)
    log.close()
    assert whole(path) == b"x" * 200_000
    assert all(one.stat().st_size == 8192 + 1024 for one in files(path)[:-1])


@pytest.mark.parametrize("burst", [1, 100, 4096, 65536])
def test_a_file_exceeds_its_size_by_the_rest_of_one_line_at_most(path: Path, burst: int) -> None:
    log = LogFile(path, 4096, 1000)
    data = b"".join(b"%060d\n" % n for n in range(3000))
    reader, writer = os.pipe2(os.O_NONBLOCK)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 18)
    for i in range(0, len(data), burst):
        os.write(writer, data[i : i + burst])
        if burst < 65536:
            log.move_from(reader)
    os.close(writer)
    while log.move_from(reader):
        pass
    os.close(reader)
    log.close()
    assert whole(path) == data
    assert {one.stat().st_size for one in files(path)[:-1]} == {68 * 61}, "4096 is in line 68"


def test_one_file_alone_begins_anew(path: Path) -> None:
    log = LogFile(path, 4096, 1)
    fill(log, b"".join(b"line %d\n" % n for n in range(5000)))
    log.close()
    assert files(path) == [path]
    assert whole(path).endswith(b"line 4999\n")


@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_a_rotation_that_was_interrupted_loses_nothing(path: Path, missing: int) -> None:
    path.parent.mkdir()
    for n, one in enumerate((path, *(path.with_name(f"web.log.{i}") for i in (1, 2, 3)))):
        if n != missing:
            one.write_bytes(b"%d" % (3 - n) * 5000)
    before = whole(path)
    log = LogFile(path, 4096, 5)
    fill(log, b"new\n")
    log.close()
    assert whole(path) == before + b"new\n"
    assert path.read_bytes().endswith(b"new\n")


async def test_a_fifo_nobody_has_opened_yet_is_not_at_its_end(path: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    log = LogFile(path, 1 << 20, 3)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(copy, reader, log, print)
            await trio.testing.wait_all_tasks_blocked()
            writer = os.open(tmp_path / "fifo", os.O_WRONLY | os.O_NONBLOCK)
            os.write(writer, b"late\n")
            os.close(writer)
    assert path.read_bytes() == b"late\n"
    os.close(reader)
    log.close()


async def test_a_log_that_cannot_be_written_keeps_its_output_waiting(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path.parent.write_text("no directory")
    reader, writer = os.pipe2(os.O_NONBLOCK)
    os.write(writer, b"patience\n")
    os.close(writer)
    log, said = LogFile(path, 1 << 20, 3), []

    def say(text: str) -> None:
        said.append(text)

    async def make_room() -> None:
        await trio.sleep(5)
        path.parent.unlink()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_room)
        assert await copy(reader, log, say, 10)
    assert path.read_bytes() == b"patience\n"
    assert len(said) == 2
    assert "cannot write" in said[0]
    assert said[1] == "", "it can be written again"
    os.close(reader)
    log.close()


# Moves a fifo to a log, killed again and again: a small process, since pytest's forks are slow.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from minid.logs import LogFile
path, chance = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
reader, writer = os.pipe()
data = sys.stdin.buffer.read()
begun, begin = os.pipe()
author = os.fork()
if author == 0:
    # A part for each process that moves: the number of kills does not depend on their speed.
    os.close(begin)
    with open(writer, "wb", buffering=0) as file:
        for i in range(0, len(data), 10_007):
            os.read(begun, 1)
            file.write(data[i : i + 10_007])
    os._exit(0)
os.close(writer)
kills, done = 0, False
while not done:
    os.write(begin, b".")
    pid = os.fork()
    if pid == 0:
        log = LogFile(path, 50_000, 1000)
        try:
            while log.move_from(reader):
                pass
        except BlockingIOError:
            os._exit(1)
        os._exit(0)
    time.sleep(chance.uniform(0, 0.004))
    os.kill(pid, signal.SIGKILL)
    done = os.waitpid(pid, 0)[1] == 0
    kills += 1
os.waitpid(author, 0)
print(kills)
"""


def test_killed_at_any_moment_it_has_written_what_is_no_longer_in_the_fifo(path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    data = b"".join(b"line %d\n" % n for n in range(100_000))
    command = [sys.executable, "-c", KILLED, str(path), str(seed)]
    environ = os.environ | {"PYTHONPATH": str(EXAMPLES)}
    kills = subprocess.run(
        command, input=data, env=environ, stdout=subprocess.PIPE, timeout=300, check=True
    )
    assert int(kills.stdout) > 100
    assert whole(path) == data


async def test_who_holds_a_fifo_for_ever_is_not_waited_for_at_the_end(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    os.write(writer, b"last\n")
    log = LogFile(path, 1 << 20, 3)
    assert not await copy(reader, log, print, 10)
    assert 10 <= trio.current_time() < 21
    assert path.read_bytes() == b"last\n"
    for fd in (reader, writer):
        os.close(fd)
    log.close()


def test_a_log_that_moves_leaves_what_is_there(path: Path) -> None:
    log = LogFile(path, 1 << 20, 3)
    fill(log, b"old\n")
    log.reopen_at(path.with_name("other.log"), 1 << 20, 3)
    fill(log, b"new\n")
    log.close()
    assert path.read_bytes() == b"old\n"
    assert path.with_name("other.log").read_bytes() == b"new\n"
