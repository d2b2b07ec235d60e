"""``docker exec`` under each dockerd."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.e2e.attached import attached
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from tests.docker.docker import Docker

pytestmark = pytest.mark.e2e
SCENARIO = "Exec"


def test_exec_prints_and_passes_the_exit_code(docker: Docker) -> None:
    name = docker.start("sleep", "1000")
    result = docker("exec", name, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (result.code, result.out, result.err) == (3, b"out\n", "err\n")


def test_stdin_of_an_exec_arrives_whole_and_has_an_end(docker: Docker) -> None:
    name = docker.start("sleep", "1000")
    sent = os.urandom(3 << 20)
    result = docker.exec(name, "sh", "-c", "cat; echo the end; exit 4", stdin=sent)
    assert (result.code, result.err) == (4, "")
    assert result.out == sent + b"the end\n"


def test_an_exec_has_the_user_directory_and_environment_it_is_given(docker: Docker) -> None:
    name = docker.start("sleep", "1000")
    flags = ["--user", "1234:567", "--workdir", "/tmp", "--env", "A=b"]
    result = docker("exec", *flags, name, "sh", "-c", "id -u; id -g; pwd; echo $A")
    assert result.text == "1234\n567\n/tmp\nb\n", result


def test_a_program_that_cannot_be_run_in_a_container_is_told(docker: Docker) -> None:
    name = docker.start("sleep", "1000")
    missing, refused = (docker("exec", name, command) for command in ("nothere", "/etc"))
    # Docker makes the code from our words; before 28 it was the same for both.
    assert missing.code == (127 if docker.dockerd.major >= 28 else 126)
    assert refused.code == 126
    assert '"nothere": executable file not found in $PATH' in missing.err + missing.text
    assert '"/etc": permission denied' in refused.err + refused.text
    assert docker.exec(name, "true").code == 0


def test_twenty_execs_at_once_keep_their_output_and_codes_apart(docker: Docker) -> None:
    def one(number: int) -> tuple[int, str]:
        result = docker.exec(name, "sh", "-c", f"cat; exit {number}", stdin=b"%d\n" % number)
        return result.code, result.text

    name = docker.start("sleep", "1000")
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(one, range(20)))
    assert results == [(number, f"{number}\n") for number in range(20)]


def test_an_exec_ends_with_its_container(docker: Docker) -> None:
    name = docker.start("sleep", "1000")
    with attached(docker, "exec", name, "sh", "-c", "echo up; sleep 1000") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        docker.ok("kill", name)
        assert process.wait(30) == 137
    assert docker.wait_exit(name) == 137


def test_a_detached_exec_goes_on_without_a_client(docker: Docker) -> None:
    name = docker.start("sleep", "1000")
    docker.ok("exec", "-d", name, "sh", "-c", "echo x; echo y > /done")
    wait_until("it is done", lambda: docker.exec(name, "cat", "/done").text == "y\n")
    wait_until("docker forgets it", lambda: not docker.inspect(name)["ExecIDs"])


def test_in_a_paused_container_there_is_no_exec(docker: Docker) -> None:
    name = docker.start("sleep", "1000")
    docker.ok("pause", name)
    result = docker("exec", name, "true")
    assert result.code != 0
    assert "is paused" in result.err
    docker.ok("unpause", name)
    assert docker.exec(name, "true").code == 0
