"""``docker run -t`` and ``docker exec -t`` at a real pty, under each dockerd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.terminal import Terminal, check_interrupt, open_terminal
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from tests.docker.docker import Docker

pytestmark = pytest.mark.e2e
SCENARIO = "Terminal"


def test_a_shell_at_a_terminal_has_its_size_and_sees_it_change(docker: Docker) -> None:
    command = docker.argv(*docker.run_args("--rm", "-it", "--", "sh"))
    with open_terminal(command, rows=30, columns=100) as terminal:
        terminal.expect("# ")
        wait_size(terminal, 30, 100)
        wait_size(terminal, 40, 120)
        terminal.type("tty; exit 11\n")
        terminal.expect("/dev/pts/0")
        assert terminal.wait() == 11


def test_control_c_interrupts_the_program_and_not_the_shell(docker: Docker) -> None:
    command = docker.argv(*docker.run_args("--rm", "-it", "--", "sh"))
    with open_terminal(command) as terminal:
        check_interrupt(terminal)


def test_an_exec_has_a_terminal_of_its_own(docker: Docker) -> None:
    name = docker.start("sleep", "1000")
    command = docker.argv("exec", "-it", name, "sh")
    with open_terminal(command, rows=25, columns=90) as terminal:
        terminal.expect("# ")
        wait_size(terminal, 25, 90)
        wait_size(terminal, 26, 91)
        terminal.type("exit 12\n")
        assert terminal.wait() == 12
    assert docker.state(name)["Running"]


def test_much_output_at_a_terminal_is_complete(docker: Docker) -> None:
    script = "seq 1 20000; echo the end"
    command = docker.argv(*docker.run_args("--rm", "-t", "--", "sh", "-c", script))
    with open_terminal(command) as terminal:
        terminal.expect("\n19999\n20000\nthe end\n")
        assert terminal.wait() == 0


def test_a_shell_that_was_left_is_found_again(docker: Docker) -> None:
    name = docker.start("sh", flags=("-it",))
    with open_terminal(docker.argv("attach", name)) as terminal:
        terminal.type("a=5; echo s''et\n")  # so that its echo is not its answer
        terminal.expect("set\n")
        terminal.type("\x10\x11")  # control-p control-q: leave it running
        terminal.expect("read escape sequence")
        terminal.wait()
    with open_terminal(docker.argv("attach", name)) as terminal:
        terminal.type("exit $a\n")
        assert terminal.wait() == 5
    assert docker.wait_exit(name) == 5


def wait_size(terminal: Terminal, rows: int, columns: int) -> None:
    """Change the window until the shell has seen it.

    Once is not enough: docker begins to listen for changes some time after it has sent the
    first size.
    """

    def seen() -> bool:
        terminal.resize(rows, columns)
        terminal.type("echo =$(stty size)=\n")
        terminal.expect("\n=")
        answer = terminal.screen
        terminal.expect("=")
        terminal.expect("# ")
        return answer.startswith(f"{rows} {columns}")

    wait_until(f"the size is {rows} {columns}", seen)
