"""A pytest fixture that gives each test a container of its own.

    CONTAINER_SOURCE=oci:LAYOUT:TAG pytest examples/python/test_in_container.py

It needs root, runc, and the shim's executable on PATH.
"""

import os
from collections.abc import Iterator

import pytest

import shimctl.blocking as shimctl


@pytest.fixture
def container() -> Iterator[shimctl.Process]:
    """Run a container for the test; nothing of it is left afterwards."""
    with shimctl.spawn(os.environ["CONTAINER_SOURCE"], ["sleep", "1000"]) as process:
        yield process


def test_a_file_is_written(container: shimctl.Process) -> None:
    command = ["sh", "-c", "echo hello >/tmp/file; cat /tmp/file"]
    assert container.task.exec_output(command, check=True).stdout == b"hello\n"


def test_a_new_container_has_its_init_process_only(container: shimctl.Process) -> None:
    assert [process.pid for process in container.task.pids()] == [container.pid]


def test_a_container_that_is_killed_has_the_status_of_a_shell(container: shimctl.Process) -> None:
    container.kill("KILL")
    assert container.wait(timeout=10).exit_status == 137
