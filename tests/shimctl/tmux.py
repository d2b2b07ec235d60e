"""Real terminals: a tmux server of the test's own, with a shell in each session."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 60  # s for what should take a fraction of one


class Terminal:
    """One terminal, and the shell in it."""

    def __init__(self, tmux: Tmux, name: str) -> None:
        self._tmux = tmux
        self._name = name
        self._marks = itertools.count()
        self.type("PS1='ready''> '\n")
        self.expect("ready> ")

    def type(self, text: str) -> None:
        """Type ``text``; control characters are keys."""
        for line in text.splitlines(keepends=True):
            # As hexadecimal, or tmux would take a ; for its own.
            keys = [f"{byte:x}" for byte in line.replace("\n", "\r").encode()]
            self._tmux.run("send-keys", "-t", self._name, "-H", *keys)

    def screen(self) -> str:
        """Return all that was shown, long lines in one piece."""
        return self._tmux.run("capture-pane", "-t", self._name, "-p", "-J", "-S", "-")

    def expect(self, text: str, count: int = 1) -> None:
        """Wait until ``text`` is shown, ``count`` times."""
        eventually(lambda: self.screen().count(text) >= count, self.screen)

    def resize(self, columns: int, rows: int) -> None:
        self._tmux.run("resize-window", "-t", self._name, "-x", str(columns), "-y", str(rows))

    def command(self, command: str) -> int:
        """Run ``command`` in the shell until it ends; return its exit code."""
        return self.code(self.begin(command))

    def begin(self, command: str) -> Path:
        """Start ``command``; return where its exit code will be."""
        result = self._tmux.root / f"{self._name}-{next(self._marks)}"
        self.type(f"{command}; echo $? > {result}.new; mv {result}.new {result}\n")
        return result

    def code(self, result: Path) -> int:
        """Wait for the end of what :meth:`begin` started."""
        eventually(result.exists, self.screen)
        return int(result.read_text())

    def settings(self) -> str:
        """Return all of how the terminal is set, but its size."""
        file = self._tmux.root / "stty"
        assert self.command(f"stty -g > {file}") == 0
        return file.read_text()

    def shell(self) -> int:
        """Return the pid of the shell."""
        return int(self._tmux.run("display-message", "-t", self._name, "-p", "#{pane_pid}"))

    def close(self) -> None:
        """Close the window, as a user does."""
        self._tmux.run("kill-session", "-t", self._name)


class Tmux:
    """What :func:`open_tmux` gives."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._sessions = itertools.count()

    def run(self, *argv: str) -> str:
        command = ["tmux", "-S", str(self.root / "socket"), "-f", "/dev/null", *argv]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE, env=_environ()
        )
        assert done.returncode == 0, (argv, done.stderr)
        return done.stdout

    def open(self, columns: int = 100, rows: int = 30) -> Terminal:
        """Open one more terminal."""
        name = f"t{next(self._sessions)}"
        size = ["-x", str(columns), "-y", str(rows)]
        shell = shlex.join(["bash", "--norc", "--noprofile"])
        self.run("new-session", "-d", "-s", name, *size, shell)
        return Terminal(self, name)


def _environ() -> dict[str, str]:
    # Inside another tmux this one would refuse to start; PS1 and history are the shell's.
    unwanted = ("TMUX", "PROMPT_COMMAND", "HISTFILE")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return kept | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}


@contextmanager
def open_tmux() -> Iterator[Tmux]:
    """Have a server of our own for the block; skip where there is no tmux."""
    if shutil.which("tmux") is None or shutil.which("bash") is None:
        pytest.skip("needs tmux and bash")
    with tempfile.TemporaryDirectory(prefix="tm") as directory:
        tmux = Tmux(Path(directory))
        tmux.open()  # one that stays, or the server would go with the last
        pid = int(tmux.run("display-message", "-p", "#{pid}"))
        try:
            yield tmux
        finally:
            tmux.run("kill-server")
            eventually(lambda: not _runs(pid), lambda: f"tmux {pid} stays")


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def eventually(condition: Callable[[], object], shown: Callable[[], object]) -> None:
    """Poll: a screen has no event for a change."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, shown()
        time.sleep(0.02)
