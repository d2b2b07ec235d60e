"""``docker run``: output, input, exit codes and the options people use, under each dockerd."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.docker.leftovers import leftovers
from tests.e2e.ctr import RUNTIME, STOCK
from tests.e2e.test_lifecycle import alive

if TYPE_CHECKING:
    from tests.docker.docker import Docker

pytestmark = pytest.mark.e2e
SCENARIO = "Run"


def test_run_prints_and_passes_the_exit_code(docker: Docker) -> None:
    result = docker.sh("echo out; echo err >&2; exit 3")
    assert (result.code, result.out, result.err) == (3, b"out\n", "err\n")
    assert docker.ok("ps", "-aq") == ""


def test_a_container_is_run_by_this_shim(docker: Docker) -> None:
    name = docker.start("sleep", "1000")
    status = Path(f"/proc/{docker.pid(name)}/status").read_text()
    parent = next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:"))
    ours = "python" in Path(f"/proc/{parent}/exe").readlink().name
    assert ours == (RUNTIME != STOCK)
    assert docker.inspect(name)["HostConfig"]["Runtime"] == docker.dockerd.runtimes[0]


@pytest.mark.unshared
def test_what_is_looked_for_afterwards_is_there_before(docker: Docker) -> None:
    docker.start("sleep", "1000")
    kinds = {line.split()[0] for line in leftovers(docker)}
    assert kinds == {"process", "mount", "fifo", "socket", "directory"}


def test_stdin_arrives_whole_and_has_an_end(docker: Docker) -> None:
    sent = os.urandom(3 << 20)
    result = docker.sh("cat; echo the end; exit 4", "-i", stdin=sent)
    assert (result.code, result.err) == (4, "")
    assert result.out == sent + b"the end\n"


def test_without_a_client_for_it_stdin_is_empty(docker: Docker) -> None:
    assert docker.sh("cat; echo no more", stdin=b"not for it").text == "no more\n"


def test_output_on_both_streams_is_complete(docker: Docker) -> None:
    result = docker.sh("seq 1 100000; seq 1 100000 >&2")
    numbers = "".join(f"{number}\n" for number in range(1, 100001))
    assert result.text == numbers
    assert result.err == numbers


def test_a_background_child_that_holds_stdout_does_not_hold_up_the_exit(docker: Docker) -> None:
    result = docker.sh("sleep 1000 & echo done; exit 5")
    assert (result.code, result.text) == (5, "done\n")


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("nothere", 127, 'exec: "nothere": executable file not found in $PATH'),
        ("/nothere", 127, 'exec: "/nothere": stat /nothere: no such file or directory'),
        ("/etc", 126, 'exec: "/etc": permission denied'),
    ],
)
def test_a_program_that_cannot_be_run_gives_dockers_code_and_message(
    docker: Docker, command: str, code: int, words: str
) -> None:
    result = docker.run("--", command)
    assert result.code == code
    assert "OCI runtime create failed: runc create failed: unable to start container" in result.err
    assert words in result.err
    [container] = docker.ok("ps", "-aq").split()
    state = docker.state(container)
    assert (state["Status"], state["ExitCode"], state["Pid"]) == ("created", code, 0)


def test_ten_containers_at_once_keep_their_output_and_codes_apart(docker: Docker) -> None:
    def one(number: int) -> tuple[int, str]:
        result = docker.sh(f"echo {number}; exit {number}")
        return result.code, result.text

    with ThreadPoolExecutor(10) as pool:
        results = list(pool.map(one, range(10)))
    assert results == [(number, f"{number}\n") for number in range(10)]


def test_init_passes_signals_on_and_reaps(docker: Docker) -> None:
    script = "trap 'exit 6' TERM; echo $$; while :; do sleep 0.05; done"
    name = docker.start("sh", "-c", script, flags=("--init",))
    assert docker.exec(name, "cat", "/proc/1/comm").text in {"docker-init\n", "tini-static\n"}
    docker.ok("stop", name)
    assert docker.wait_exit(name) == 6
    assert docker.logs(name) != "1"


def test_children_in_the_hosts_pid_namespace_die_with_their_init(docker: Docker) -> None:
    result = docker.sh("sleep 4321 & echo $$ $!; exit 7", "--pid=host")
    assert result.code == 7
    init, child = map(int, result.text.split())
    assert init != 1
    assert not alive(child)


def test_a_user_writes_to_its_own_stdout(docker: Docker) -> None:
    result = docker.sh("id -u; id -g; echo x > /dev/stdout", "--user", "1234:567")
    assert (result.code, result.text) == (0, "1234\n567\nx\n"), result.err


def test_a_bind_mount_is_there_and_is_the_hosts(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from the host\n")
    result = docker.sh("cat /mnt/in; echo back > /mnt/out", "-v", f"{tmp_path}:/mnt")
    assert result.text == "from the host\n"
    assert (tmp_path / "out").read_text() == "back\n"


def test_a_container_that_was_made_runs_each_time_it_is_started(docker: Docker) -> None:
    args = docker.run_args("--", "sh", "-c", "echo x >> /count; exit $(wc -l < /count)")
    name = docker.ok("create", *args[1:])
    assert [docker("start", "-a", name).code for _ in range(3)] == [1, 2, 3]
