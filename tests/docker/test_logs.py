"""``docker logs`` and ``docker attach`` under each dockerd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.attached import attached
from tests.e2e.waiting import wait_until
from tests.shimctl import tool

if TYPE_CHECKING:
    from tests.docker.docker import Docker

pytestmark = pytest.mark.e2e
SCENARIO = "Logging"


def test_logs_are_there_after_the_fact_with_the_streams_apart(docker: Docker) -> None:
    name = docker.start("sh", "-c", "seq 1 20000; echo err >&2; printf unfinished")
    assert docker.wait_exit(name) == 0
    result = docker("logs", name)
    assert result.text == "".join(f"{number}\n" for number in range(1, 20001)) + "unfinished"
    assert result.err == "err\n"


def test_logs_are_followed_to_the_end(docker: Docker) -> None:
    name = docker.start("sh", "-c", "echo one; read go; echo two; exit 2", flags=("-i",))
    with attached(docker, "logs", "-f", name) as logs:
        assert logs.stdout is not None
        assert logs.stdout.readline() == b"one\n"
        assert docker("attach", name, stdin=b"go\n").code == 2
        assert logs.stdout.read() == b"two\n"
        assert logs.wait(30) == 0


def test_two_clients_see_the_same_output(docker: Docker) -> None:
    script = "while ! test -e /go; do echo wait; sleep 0.05; done; seq 1 1000; exit 3"
    name = docker.start("sh", "-c", script)
    with attached(docker, "attach", name) as one, attached(docker, "attach", name) as two:
        for client in (one, two):
            assert client.stdout is not None
            assert client.stdout.readline() == b"wait\n"
        assert docker.exec(name, "touch", "/go").code == 0
        for client in (one, two):
            out, _err = client.communicate(timeout=30)
            assert client.returncode == 3
            assert out.replace(b"wait\n", b"").split() == [b"%d" % n for n in range(1, 1001)]


def test_shimctl_shows_the_log_of_a_container(docker: Docker) -> None:
    name = docker.start("sh", "-c", "echo err >&2; seq 1 50; exec sleep 1000")
    wait_until("the output is logged", lambda: docker.logs(name).endswith("\n50"))
    wait_until("the error is logged", lambda: docker("logs", name).err)
    [container] = docker.find_ids()[-1:]
    state = str(docker.dockerd.root / "exec/containerd/daemon")
    for options, lines in ([], 51), (["--tail", "4"], 4):
        done = tool.shimctl("logs", "--state", state, *options, container)
        assert done.returncode == 0, done
        assert done.stdout.endswith("49\n50\n")
        # Docker itself orders the lines of the two streams.
        assert len((done.stdout + done.stderr).split()) == lines
        assert done.stderr in ("err\n", "" if options else "err\n")
