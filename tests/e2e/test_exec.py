"""More processes in a running container."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.attached import attached

if TYPE_CHECKING:
    from tests.e2e.ctr import Ctr

pytestmark = pytest.mark.e2e
SCENARIO = "Exec"


@pytest.fixture
def container(ctr: Ctr) -> str:
    return ctr.start("sleep", "1000")


def test_exec_prints_and_passes_the_exit_code(ctr: Ctr, container: str) -> None:
    result = ctr.exec(container, "sh", "-c", "echo hi; echo no >&2; exit 9")
    assert (result.code, result.text, result.err) == (9, "hi\n", "no\n")
    assert ctr.state(container) == "RUNNING"


def test_the_end_of_stdin_reaches_the_process(ctr: Ctr, container: str) -> None:
    result = ctr.exec(container, "cat", stdin=b"one\ntwo\n")
    assert (result.code, result.text) == (0, "one\ntwo\n")


def test_a_megabyte_goes_in_and_out_again(ctr: Ctr, container: str) -> None:
    data = bytes(range(256)) * 4096
    result = ctr.exec(container, "cat", stdin=data)
    assert result.code == 0
    assert result.out == data


def test_a_detached_exec_is_killed_by_its_own_id(ctr: Ctr, container: str) -> None:
    ctr.exec_detached(container, "killme", "sleep", "1234")
    assert "1234" in ctr.exec(container, "ps").text
    assert ctr.end_exec(container, "killme") == 137
    assert "1234" not in ctr.exec(container, "ps").text
    assert ctr.state(container) == "RUNNING"


def test_an_exec_id_is_taken_while_it_is_in_use(ctr: Ctr, container: str) -> None:
    ctr.exec_detached(container, "twice", "sleep", "1000")
    again = ctr("task", "exec", "--exec-id", "twice", container, "true")
    assert again.code != 0
    assert "already exists" in again.err
    # The refused one has not taken the first one's place.
    assert ctr.end_exec(container, "twice") == 137


def test_a_client_that_vanishes_leaves_the_exec_running(ctr: Ctr, container: str) -> None:
    fifos = ("--fifo-dir", ctr.containerd.root / "fifo-detached")  # which it cannot remove
    script = "echo go; sleep 1000"
    command = ("task", "exec", *fifos, "--exec-id", "left", container, "sh", "-c", script)
    with attached(ctr, *command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"go\n"
    assert "left" in ctr.ok("task", "ps", container)
    assert ctr.exec(container, "echo", "still").text == "still\n"
    assert ctr.end_exec(container, "left") == 137
    assert ctr.state(container) == "RUNNING"


def test_a_missing_program_is_named_and_the_container_goes_on(ctr: Ctr, container: str) -> None:
    result = ctr.exec(container, "/no/such/program")
    assert result.code != 0
    assert "/no/such/program" in result.err
    assert "no such file" in result.err
    assert ctr.exec(container, "echo", "still").text == "still\n"


def test_processes_are_listed_with_execs(ctr: Ctr, container: str) -> None:
    ctr.exec_detached(container, "shown", "sleep", "1000")
    listing = ctr.ok("task", "ps", container)
    assert str(ctr.pid(container)) in listing
    assert "shown" in listing
    assert ctr.end_exec(container, "shown") == 137
