"""top at a terminal: a page that stays one, keys, and a terminal as it was."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
PATIENCE = 60  # s
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


class Terminal:
    """A terminal with ``shimctl top`` in control of it."""

    def __init__(self, state: Path, *argv: str, **environ: str) -> None:
        self.ours, self.theirs = pty.openpty()
        self.resize(24, 80)
        self.before = termios.tcgetattr(self.theirs)
        self.shown = b""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", sys.executable, "-m", "shimctl", "top", *argv],
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", "SHIMCTL_STATE": str(state), **environ},
        )

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.shown
            if select.select([self.ours], [], [], 0.05)[0]:
                self.shown += os.read(self.ours, 65536)

    def expect(self, text: bytes) -> None:
        self.read(lambda: text in self.shown)
        self.shown = self.shown.partition(text)[2]

    def type(self, text: bytes) -> None:
        os.write(self.ours, text)

    def end(self) -> int:
        """Read until the end; return the exit code."""
        self.read(lambda: self.process.poll() is not None)
        while select.select([self.ours], [], [], 0)[0]:
            self.shown += os.read(self.ours, 65536)
        return self.process.wait()


@pytest.fixture
def open_top(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_(*argv: str, **environ: str) -> Terminal:
        terminal = Terminal(tmp_path, "-n", "nobody", *argv, **environ)
        opened.append(terminal)
        return terminal

    yield open_
    for terminal in opened:
        os.close(terminal.ours)
        os.close(terminal.theirs)
        terminal.process.wait(PATIENCE)


def test_q_ends_it_and_the_terminal_is_as_it_was(open_top: Callable[..., Terminal]) -> None:
    top = open_top()
    top.expect(ENTER)
    top.expect(b"NAMESPACE")
    top.type(b"q")
    assert top.end() == 0
    assert LEAVE in top.shown
    assert b"\x1b[?25h" in top.shown
    assert termios.tcgetattr(top.theirs) == top.before


def test_an_interrupt_ends_it_and_the_terminal_is_as_it_was(
    open_top: Callable[..., Terminal],
) -> None:
    top = open_top()
    top.expect(b"NAMESPACE")
    top.type(b"\x03")
    assert top.end() == 130
    assert LEAVE in top.shown
    assert b"Traceback" not in top.shown
    assert termios.tcgetattr(top.theirs) == top.before


def test_being_told_to_stop_leaves_the_terminal_as_it_was(
    open_top: Callable[..., Terminal],
) -> None:
    top = open_top()
    top.expect(b"NAMESPACE")
    top.process.send_signal(signal.SIGTERM)
    assert top.end() == 143
    assert LEAVE in top.shown
    assert termios.tcgetattr(top.theirs) == top.before


def test_keys_choose_what_comes_first_and_others_do_nothing(
    open_top: Callable[..., Terminal],
) -> None:
    top = open_top("--sort", "memory")
    top.expect(b"by memory")
    for key, name in ((b"p", b"pids"), (b"i", b"io"), (b"C", b"cpu"), (b"n", b"id")):
        top.type(b"x\x1b" + key)
        top.expect(b"by " + name)
    top.type(b"q")
    assert top.end() == 0


def test_a_narrow_terminal_gets_shorter_lines_and_a_short_one_fewer(
    open_top: Callable[..., Terminal],
) -> None:
    top = open_top()
    top.expect(b"WRITTEN/s")
    top.resize(3, 20)  # the kernel sends SIGWINCH
    top.expect(b"\x1b[H")
    top.type(b"m")
    top.expect(b"\x1b[H")
    top.expect(b"\x1b[J")
    page = top.shown
    top.type(b"q")
    assert top.end() == 0
    for line in re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", page).split(b"\r\n"):
        assert len(line) <= 20


def test_iterations_end_it(open_top: Callable[..., Terminal]) -> None:
    top = open_top("-i", "2", "-d", "100ms")
    assert top.end() == 0
    assert top.shown.count(b"\x1b[H") == 2
    assert termios.tcgetattr(top.theirs) == top.before


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {}], ids=["NO_COLOR", "colours"])
def test_colours_are_shown_unless_they_are_not_wanted(
    open_top: Callable[..., Terminal], environ: dict[str, str]
) -> None:
    top = open_top("-i", "1", "-d", "100ms", **environ)
    assert top.end() == 0
    assert (b"\x1b[1mNAMESPACE" in top.shown) == (not environ)


def test_a_dumb_terminal_gets_plain_lines(open_top: Callable[..., Terminal]) -> None:
    top = open_top("-i", "1", "-d", "100ms", TERM="dumb")
    assert top.end() == 0
    assert b"\x1b" not in top.shown
    assert b"NAMESPACE" in top.shown
