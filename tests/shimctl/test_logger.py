"""The logging program, started as shims start it."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import tempfile
import termios
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shimctl.standalone.detached import logger_address
from shimctl.standalone.logentries import parse_entry
from shimctl.standalone.logger import LIMIT, LONGEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 30  # s


@dataclass
class Logger:
    """A running logging program, and the container's ends of its pipes."""

    path: Path
    process: subprocess.Popen[bytes]
    stdout: int
    stderr: int

    def end(self) -> None:
        for fd in (self.stdout, self.stderr):
            os.close(fd)
        assert self.process.wait(PATIENCE) == 0

    def content(self, stream: bytes = b"stdout") -> bytes:
        """Return the logged bytes of a stream."""
        files = (self.path.with_name(self.path.name + ".1"), self.path)
        text = b"".join(file.read_bytes() for file in files if file.exists())
        *lines, rest = text.split(b"\n")
        assert not rest
        entries = list(map(parse_entry, lines))
        assert None not in entries
        return b"".join(
            entry.content + b"\n" * entry.ends
            for entry in entries
            if entry is not None and entry.stream == stream
        )

    def ends_with(self, text: bytes) -> bool:
        return self.content().endswith(text)


@contextmanager
def open_logger(path: Path, limit: int = LIMIT) -> Iterator[Logger]:
    url = urlsplit(logger_address(path, limit))
    [pair] = parse_qsl(url.query)
    pipes = [os.pipe2(0) for _ in range(3)]
    (out, stdout), (err, stderr), (ready, readied) = pipes

    def place() -> None:  # 3, 4 and 5, where a shim puts them
        for fd in (out, err, readied):
            os.dup2(fd, fd + 100)
        for number, fd in ((3, out), (4, err), (5, readied)):
            os.dup2(fd + 100, number)
        os.closerange(6, 300)

    process = subprocess.Popen(
        [unquote(url.path), *pair],
        env={"CONTAINER_ID": "c", "CONTAINER_NAMESPACE": "n"},
        stdin=subprocess.DEVNULL,
        close_fds=False,
        preexec_fn=place,
    )
    for fd in (out, err, readied):
        os.close(fd)
    try:
        assert os.read(ready, 1) == b"\0"
        assert os.read(ready, 1) == b""
        yield Logger(path, process, stdout, stderr)
    finally:
        os.close(ready)
        if process.poll() is None:
            process.kill()
            process.wait()
            for fd in (stdout, stderr):
                os.close(fd)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "output.log"


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # a file has no event for a write


def test_each_line_has_its_time_and_its_stream(path: Path) -> None:
    with open_logger(path) as logger:
        os.write(logger.stdout, b"one\ntwo\n")
        eventually(lambda: logger.content() == b"one\ntwo\n")
        os.write(logger.stderr, b"three\n")
        logger.end()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"
    expected = f"{stamp} stdout F one\n{stamp} stdout F two\n{stamp} stderr F three\n"
    assert re.fullmatch(expected, path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600


@settings(max_examples=15, deadline=None)
@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"\n" * 9, b"x" * 40_000]), max_size=9))
def test_every_byte_is_logged_however_it_is_written(pieces: list[bytes]) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        open_logger(Path(directory) / "output.log") as logger,
    ):
        for piece in pieces:
            os.write(logger.stdout, piece)
            os.write(logger.stderr, piece[::-1])
        logger.end()
        assert logger.content() == b"".join(pieces)
        assert logger.content(b"stderr") == b"".join(piece[::-1] for piece in pieces)


@pytest.mark.parametrize("length", [LONGEST - 1, LONGEST, LONGEST + 1, 5 * LONGEST])
def test_a_long_line_is_cut_and_can_be_put_together(path: Path, length: int) -> None:
    with open_logger(path) as logger:
        os.write(logger.stdout, b"x" * length + b"\nshort\n")
        logger.end()
    assert logger.content() == b"x" * length + b"\nshort\n"
    assert max(map(len, path.read_bytes().splitlines())) < LONGEST + 60


def test_an_unfinished_line_is_logged_after_a_moment(path: Path) -> None:
    with open_logger(path) as logger:
        os.write(logger.stdout, b"password: ")
        eventually(lambda: path.exists() and logger.content() == b"password: ")
        os.write(logger.stdout, b"secret\n")
        logger.end()
    assert [line.split()[2] for line in path.read_bytes().splitlines()] == [b"P", b"F"]


def test_sigterm_finds_the_pipes_empty_though_others_hold_them(path: Path) -> None:
    with open_logger(path) as logger:
        logger.process.send_signal(signal.SIGSTOP)
        os.write(logger.stdout, b"last words\nunfinished")
        os.write(logger.stderr, b"more\n")
        logger.process.send_signal(signal.SIGTERM)
        logger.process.send_signal(signal.SIGCONT)
        assert logger.process.wait(PATIENCE) == 0
        assert logger.content() == b"last words\nunfinished"
        assert logger.content(b"stderr") == b"more\n"
        for fd in (logger.stdout, logger.stderr):
            os.close(fd)


def test_much_at_once_takes_no_file_beyond_its_limit(path: Path) -> None:
    with open_logger(path, limit=20_000) as logger:
        os.write(logger.stdout, b"\n" * 30_000)  # each is an entry of forty bytes
        logger.end()
    old = path.with_name("output.log.1")
    assert 0 < path.stat().st_size <= 20_000
    assert 0 < old.stat().st_size <= 20_000


def test_a_full_file_becomes_the_old_one_and_whole(path: Path) -> None:
    with open_logger(path, limit=10_000) as logger:
        for number in range(1000):
            os.write(logger.stdout, b"line %d\n" % number)
            if number % 50 == 49:  # so that it does not come in one piece
                eventually(partial(logger.ends_with, b"line %d\n" % number))
        logger.end()
    old = path.with_name("output.log.1")
    assert {file.name for file in path.parent.iterdir()} == {path.name, old.name}
    assert path.stat().st_size <= 10_000
    assert old.stat().st_size <= 10_000
    kept = logger.content().splitlines()
    assert kept == [b"line %d" % n for n in range(1000 - len(kept), 1000)]
    assert len(kept) > 200


def test_a_full_disk_costs_what_it_refuses_and_says_how_much(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a small tmpfs")
    try:
        ballast = disk / "ballast"
        with open_logger(disk / "output.log") as logger:
            os.write(logger.stdout, b"before\n")
            eventually(lambda: logger.path.exists() and logger.content() == b"before\n")
            with pytest.raises(OSError, match="No space"):
                ballast.write_bytes(b"x" * 100_000)
            for _ in range(300):  # more than a pipe holds: the container never stops
                os.write(logger.stdout, b"y" * 999 + b"\n")
            os.write(logger.stdout, b"z" * 999 + b"\n")
            ballast.unlink()
            eventually(lambda: not os.write(logger.stdout, b"") and not unread(logger.stdout))
            os.write(logger.stdout, b"after\n")
            logger.end()
        kept = logger.content()
        said = re.findall(
            rb"shimctl: (\d+) bytes of output were lost: No space", logger.content(b"stderr")
        )
        assert kept.startswith(b"before\n")
        assert kept.endswith(b"after\n")
        assert said
        assert sum(map(int, said)) + len(kept) == 301_000 + len(b"before\nafter\n")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def unread(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4), "little")


def test_who_reads_the_copy_gets_everything_from_then_on(path: Path) -> None:
    fifo = path.with_name("stdout")
    os.mkfifo(fifo)
    with open_logger(path) as logger:
        os.write(logger.stdout, b"unseen\n")
        eventually(lambda: path.exists() and logger.content() == b"unseen\n")
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        os.write(logger.stdout, b"see")
        os.set_blocking(reader, True)
        eventually(lambda: unread(reader) == 3)
        assert os.read(reader, 100) == b"see"
        os.write(logger.stdout, b"n\n")
        logger.end()
        assert os.read(reader, 100) == b"n\n"
        assert os.read(reader, 100) == b""
        os.close(reader)
    assert logger.content() == b"unseen\nseen\n"


def test_who_does_not_read_the_copy_keeps_nobody_and_is_told(path: Path) -> None:
    fifo = path.with_name("stdout")
    os.mkfifo(fifo)
    lines = 3000
    with open_logger(path) as logger:
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        for _ in range(lines):
            os.write(logger.stdout, b"x" * 999 + b"\n")
        eventually(lambda: len(logger.content()) == lines * 1000)
        seen = os.read(reader, 1 << 21)
        os.write(logger.stdout, b"again\n")
        logger.end()
        seen += os.read(reader, 1 << 21)
        os.close(reader)
    said = re.compile(rb"\r\nshimctl: (\d+) bytes skipped, read faster\r\n")
    skipped = sum(int(count) for count in said.findall(seen))
    assert skipped > 0
    assert seen.endswith(b"read faster\r\nagain\n")
    assert len(said.sub(b"", seen)) + skipped == lines * 1000 + len(b"again\n")


def test_a_log_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    with open_logger(tmp_path / "none" / "output.log") as logger:
        for _ in range(200):
            os.write(logger.stdout, b"x" * 1000)
        logger.end()
    assert list(tmp_path.iterdir()) == []


def test_it_loads_next_to_nothing(path: Path) -> None:
    with open_logger(path) as logger:
        os.write(logger.stdout, b"x\n")
        eventually(path.exists)
        maps = Path(f"/proc/{logger.process.pid}/smaps_rollup").read_text()
        private = sum(int(line.split()[1]) for line in maps.splitlines() if "Private_" in line)
        logger.end()
    assert private < 6000, maps  # KiB; the bare interpreter has more than half of it


def test_the_address_is_one_pair_whatever_the_path_is_called(tmp_path: Path) -> None:
    strange = tmp_path / "ü & 'x' ; + %41 {y} \\n"
    strange.mkdir()
    address = logger_address(strange / "output.log")
    assert not set(address) & set(" ;'\"\\+{}")
    assert address.count("?") == address.count("=") == 1
    assert "&" not in address
    with open_logger(strange / "output.log") as logger:
        os.write(logger.stdout, b"x\n")
        logger.end()
    assert logger.content() == b"x\n"
