"""A user at a real terminal: run, attach, detach, attach again, and faults in between."""

from __future__ import annotations

import os
import signal
import termios
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.shimctl.host import NAMESPACE, Host, _needs, host
from tests.shimctl.tmux import Terminal, Tmux, eventually, open_tmux

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["_needs", "host"]
pytestmark = pytest.mark.e2e

LEAVE = "\x10\x11"  # Ctrl-P Ctrl-Q
# The size is sent whenever it changes: a client that attaches sees output at once.
COUNT = """
stty -echo
trap 'stty size' WINCH
echo up
while true; do
    read n && seq $n && echo counted $n
done
"""


@pytest.fixture
def tmux(host: Host) -> Iterator[Tmux]:
    with open_tmux() as tmux:
        yield tmux


def shimctl(host: Host, *argv: str | Path) -> str:
    return " ".join(map(str, host.command(*argv)))


def run(host: Host, *argv: str | Path) -> str:
    return " ".join(map(str, host.run_command(*argv)))


def attach(host: Host, *argv: str | Path) -> str:
    return shimctl(host, "attach", "-n", NAMESPACE, *argv)


def pid_of(terminal: Terminal) -> int:
    """Return the pid of the shimctl that runs in the shell of ``terminal``."""
    shell = terminal.shell()
    children = Path(f"/proc/{shell}/task/{shell}/children")
    eventually(lambda: len(children.read_text().split()) == 1, terminal.screen)
    return int(children.read_text())


def begin(terminal: Terminal, command: str) -> Path:
    """Start ``command`` and wait until the terminal is its own."""
    result = terminal.begin(command)
    pid = pid_of(terminal)

    def is_raw() -> bool:
        with open(f"/proc/{pid}/fd/0", "rb") as stdin:
            return not termios.tcgetattr(stdin)[3] & termios.ICANON

    eventually(is_raw, terminal.screen)
    return result


def detached(host: Host, name: str, script: str, *options: str) -> None:
    done = host.run("-d", "-i", "-t", *options, "--id", name, host.bundle("sh", "-c", script))
    assert (done.returncode, done.stderr) == (0, "")
    logged = partial(host.shimctl, "logs", "--namespace", NAMESPACE, name)
    eventually(lambda: logged().stdout.endswith("up\n"), logged)


def test_a_foreground_terminal_is_resized_interrupted_left_and_come_back_to(
    host: Host, tmux: Tmux
) -> None:
    terminal = tmux.open(90, 25)
    before = terminal.settings()
    left = terminal.begin(run(host, "-t", "--id", "fg", host.bundle("sh")))
    terminal.expect("/ # ")
    terminal.type("echo size: $(stty size)\n")
    terminal.expect("size: 25 90")
    terminal.resize(70, 20)
    terminal.type("until stty size | grep '20 70'; do sleep 0.1; done; echo re''sized\n")
    terminal.expect("resized")
    terminal.type("sh -c 'echo sta\"\"rted; exec sleep 1000'\n")
    terminal.expect("started")
    terminal.type("\x03")
    terminal.type("echo inter''rupted\n")
    terminal.expect("interrupted")
    terminal.type(LEAVE)
    assert terminal.code(left) == 0
    terminal.expect("detached, fg keeps running; `shimctl attach fg` attaches again")
    assert terminal.settings() == before
    assert host.json("state", "-n", NAMESPACE, "fg")["status"] == "running"
    back = begin(terminal, attach(host, "fg"))
    terminal.type("echo back ag''ain\n")
    terminal.expect("back again")
    terminal.type("exit 7\n")
    assert terminal.code(back) == 7
    assert terminal.settings() == before


def test_a_lone_ctrl_p_is_passed_on_with_the_next_key(host: Host, tmux: Tmux) -> None:
    detached(host, "keys", "stty -echo; echo up; cat -v")
    terminal = tmux.open()
    left = begin(terminal, attach(host, "keys"))
    terminal.type("\x10x\n")
    terminal.expect("^Px")
    terminal.type("\x10\x10y\n")
    terminal.expect("^P^Py")
    terminal.type(LEAVE)
    assert terminal.code(left) == 0


def test_other_keys_let_go_or_none_do(host: Host, tmux: Tmux) -> None:
    detached(host, "other", "stty -ixon -echo; echo up; exec cat -v")
    terminal = tmux.open()
    left = begin(terminal, attach(host, "--detach-keys", "ctrl-],q", "other"))
    terminal.type(LEAVE + "\n")
    terminal.expect("^P^Q")
    terminal.type("\x1dq")
    assert terminal.code(left) == 0
    begin(terminal, attach(host, "--detach-keys", "''", "other"))
    terminal.type(LEAVE + "\x1dq.\n")
    terminal.expect("^P^Q^]q.")
    os.kill(pid_of(terminal), signal.SIGTERM)
    assert terminal.command(attach(host, "--detach-keys", "ctrl-1", "other")) == 125
    terminal.expect("'ctrl-1' is not a key")


@pytest.mark.parametrize("how", ["TERM", "HUP", "QUIT", "container", "shim"])
def test_the_terminal_is_restored_whatever_ends_us(host: Host, tmux: Tmux, how: str) -> None:
    detached(host, "end", "echo up; exec sleep 1000")
    terminal = tmux.open()
    before = terminal.settings()
    attached = begin(terminal, attach(host, "end"))
    pid = pid_of(terminal)
    if how == "container":
        assert host.shimctl("kill", "-n", NAMESPACE, "end", "KILL").returncode == 0
        expected = 137
    elif how == "shim":
        [row] = host.json("ps", "-a", "-n", NAMESPACE)
        os.kill(row["shim_pid"], signal.SIGKILL)
        expected = 125
    else:
        number = signal.Signals[f"SIG{how}"]
        os.kill(pid, number)
        expected = 128 + number
    assert terminal.code(attached) == expected
    assert terminal.settings() == before


def watch(host: Host, terminal: Terminal, name: str, file: Path) -> Path:
    """Attach with stdout in ``file``; return once that is done."""
    result = terminal.begin(f"{attach(host, name)} > {file}")
    eventually(lambda: file.exists() and file.stat().st_size > 0, terminal.screen)
    return result


def numbers(count: int) -> bytes:
    return b"".join(b"%d\r\n" % n for n in range(1, count + 1)) + b"counted %d\r\n" % count


def ends_with(file: Path, text: bytes) -> bool:
    return file.read_bytes().endswith(text)


def test_three_clients_see_the_same_and_go_on_when_the_first_is_killed(
    host: Host, tmux: Tmux
) -> None:
    detached(host, "many", COUNT)
    terminals = [tmux.open(100 + n, 30) for n in range(3)]
    files = [host.root / f"seen{n}" for n in range(3)]
    results = [
        watch(host, terminal, "many", file)
        for terminal, file in zip(terminals, files, strict=True)
    ]
    terminals[1].type("20000\n")
    for file in files:
        eventually(partial(ends_with, file, numbers(20000)), lambda: "not all")
    os.kill(pid_of(terminals[0]), signal.SIGKILL)
    assert terminals[0].code(results[0]) == 137
    terminals[2].type("30000\n")
    for file in files[1:]:
        eventually(partial(ends_with, file, numbers(30000)), lambda: "not all")
    terminals[1].type(LEAVE)
    assert terminals[1].code(results[1]) == 0
    terminals[2].type("10\n")
    eventually(lambda: ends_with(files[2], numbers(10)), lambda: "not all")
    terminals[2].type(LEAVE)
    assert terminals[2].code(results[2]) == 0
