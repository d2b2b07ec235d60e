"""Containers and execs with a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.terminal import Terminal, check_interrupt, open_terminal
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from tests.e2e.ctr import Ctr

pytestmark = pytest.mark.e2e
SCENARIO = "Terminal"


def test_a_shell_at_a_terminal_has_its_size_and_sees_it_change(ctr: Ctr) -> None:
    command = ctr.argv(*ctr.run_args("--rm", "-t", "--", ctr.new_id(), "sh"))
    with open_terminal(command, rows=30, columns=100) as terminal:
        terminal.expect("# ")
        wait_for_size(terminal, "30 100")
        terminal.resize(40, 120)
        wait_for_size(terminal, "40 120")
        terminal.type("tty; exit 11\n")
        terminal.expect("/dev/pts/0")
        assert terminal.wait() == 11


def test_control_c_interrupts_the_program_and_not_the_shell(ctr: Ctr) -> None:
    command = ctr.argv(*ctr.run_args("--rm", "-t", "--", ctr.new_id(), "sh"))
    with open_terminal(command) as terminal:
        check_interrupt(terminal)


def test_an_exec_has_a_terminal_of_its_own(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000")
    command = ctr.argv("task", "exec", "-t", "--exec-id", "pty", name, "sh")
    with open_terminal(command, rows=25, columns=90) as terminal:
        terminal.expect("# ")
        wait_for_size(terminal, "25 90")
        terminal.type("exit 12\n")
        assert terminal.wait() == 12
    assert ctr.state(name) == "RUNNING"


def test_much_output_at_a_terminal_is_complete(ctr: Ctr) -> None:
    script = "seq 1 20000; echo the end"
    command = ctr.argv(*ctr.run_args("--rm", "-t", "--", ctr.new_id(), "sh", "-c", script))
    with open_terminal(command) as terminal:
        terminal.expect("\n19999\n20000\nthe end\n")
        assert terminal.wait() == 0


def wait_for_size(terminal: Terminal, size: str) -> None:
    """Query until the shell reports ``size``: a resize is a separate call, beside the input."""

    def says() -> bool:
        terminal.type("echo =$(stty size)=\n")
        terminal.expect("\n=")
        answer = terminal.screen
        terminal.expect("=")
        terminal.expect("# ")
        return answer.startswith(size)

    wait_until(f"the size is {size}", says)
