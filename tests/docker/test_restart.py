"""dockerd and its containerd die and come back; containers do not notice (live-restore)."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.docker.leftovers import shims
from tests.e2e.attached import attached
from tests.e2e.leftovers import fifos
from tests.e2e.test_lifecycle import COUNT, alive
from tests.e2e.test_output_policy import SAID, wchan_of_child
from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from tests.docker.docker import Docker

pytestmark = pytest.mark.e2e
SCENARIO = "Restart of the manager"
GO = "while ! test -e /go; do sleep 0.05; done; "
FULL = 60000  # bytes; a fifo holds 65536, and the last page need not be full


def test_containers_live_on_when_both_are_killed(docker: Docker) -> None:
    counting = docker.start("sh", "-c", COUNT)
    others = [docker.start("sleep", "1000") for _ in range(2)]
    pids = {name: docker.pid(name) for name in [counting, *others]}
    found = {name: shims(docker, name) for name in pids}
    docker.dockerd.kill()
    assert all(alive(pid) for pid in pids.values())
    docker.dockerd.start()
    assert {name: docker.pid(name) for name in pids} == pids
    assert {name: shims(docker, name) for name in pids} == found
    assert {docker.state(name)["Status"] for name in pids} == {"running"}
    assert docker.exec(counting, "sh", "-c", "cat; exit 3", stdin=b"again\n").text == "again\n"
    before = docker.logs(counting)
    wait_until("it counts on", lambda: len(docker.logs(counting)) > len(before))
    numbers = [int(line) for line in docker.logs(counting).split()]
    assert numbers == list(range(1, len(numbers) + 1))
    for name in pids:
        docker.ok("kill", name)
        assert docker.wait_exit(name) == 137


def test_what_a_container_says_meanwhile_is_in_the_log(docker: Docker) -> None:
    name = docker.start("sh", "-c", GO + "cat /data; exit 6")
    pid = docker.pid(name)
    # In few lines, each of which dockerd writes to its log.
    Path(f"/proc/{pid}/root/data").write_text("\n".join(SAID))
    docker.dockerd.kill()
    go(pid)
    wait_until("nobody reads", lambda: any(size > FULL for size in held(docker)))
    wait_until("it waits", lambda: b"pipe" in wchan_of_child(pid))
    assert alive(pid)
    docker.dockerd.start()
    assert docker.wait_exit(name) == 6
    assert docker.logs(name) == "\n".join(SAID)


def test_the_last_words_of_one_that_ended_meanwhile_are_in_the_log(docker: Docker) -> None:
    name = docker.start("sh", "-c", "echo first;" + GO + "seq 1 20000; exit 7")
    pid = docker.pid(name)
    docker.dockerd.kill()
    go(pid)
    wait_until("it has ended", lambda: not alive(pid))
    docker.dockerd.start()
    assert docker.wait_exit(name) == 7
    assert docker.logs(name) == "\n".join(["first", *map(str, range(1, 20001))])


def test_those_that_end_meanwhile_have_their_true_codes(docker: Docker) -> None:
    codes = [0, 24, 143, 255]
    names = [docker.start("sh", "-c", f"{GO}exit {code}") for code in codes]
    pids = [docker.pid(name) for name in names]
    docker.dockerd.kill()
    for pid in pids:
        go(pid)
    wait_until("all have ended", lambda: not any(alive(pid) for pid in pids))
    docker.dockerd.start()
    assert [docker.wait_exit(name) for name in names] == codes
    assert docker("start", "-a", names[1]).code == 24  # /go is still there


def test_one_that_ends_after_the_restart_tells_its_code(docker: Docker) -> None:
    name = docker.start("sh", "-c", GO + "echo over; exit 23")
    docker.dockerd.restart()
    with attached(docker, "wait", name) as waiting:
        assert docker.exec(name, "touch", "/go").code == 0
        assert waiting.communicate(timeout=30)[0] == b"23\n"
    assert docker.logs(name) == "over"


def test_stdin_is_open_after_the_restart(docker: Docker) -> None:
    name = docker.start("sh", "-c", "read a; read b; echo $b $a; exit 8", flags=("-i",))
    docker.dockerd.restart()
    assert docker("attach", name, stdin=b"x\ny\n").code == 8
    assert docker.logs(name) == "y x"


def test_an_exec_cut_off_by_the_restart_does_not_disturb_its_container(docker: Docker) -> None:
    name = docker.start("sleep", "1000")
    docker.ok("exec", "-d", name, "sleep", "1001")
    docker.dockerd.restart()
    assert "sleep 1001" in docker.ok("top", name)
    assert docker.exec(name, "sh", "-c", "exit 3").code == 3
    docker.ok("kill", name)
    assert docker.wait_exit(name) == 137


def test_a_paused_container_is_paused_after_the_restart(docker: Docker) -> None:
    name = docker.start("sleep", "1000")
    docker.ok("pause", name)
    docker.dockerd.restart()
    assert docker.state(name)["Status"] == "paused"
    docker.ok("unpause", name)
    assert docker.exec(name, "echo", "back").text == "back\n"


def test_a_restart_in_good_order_is_the_same(docker: Docker) -> None:
    living = docker.start("sleep", "1000")
    dying = docker.start("sh", "-c", GO + "exit 9")
    pids = [docker.pid(living), docker.pid(dying)]
    docker.dockerd.stop()
    go(pids[1])
    wait_until("it has ended", lambda: not alive(pids[1]))
    docker.dockerd.start()
    assert docker.pid(living) == pids[0]
    assert docker.exec(living, "sh", "-c", "exit 3").code == 3
    assert docker.wait_exit(dying) == 9


def test_a_containerd_that_dies_alone_is_replaced(docker: Docker) -> None:
    name = docker.start("sh", "-c", GO + "exit 25")
    pid = docker.pid(name)
    old = docker.dockerd.containerd_pid
    os.kill(old, signal.SIGKILL)
    wait_until("dockerd has started another", lambda: docker.dockerd.containerd_pid != old, 60)
    wait_until("it serves", lambda: docker.exec(name, "true").code == 0, 60, every=0.2)
    assert docker.pid(name) == pid
    assert docker.exec(name, "touch", "/go").code == 0
    assert docker.wait_exit(name) == 25


@pytest.mark.mortal
@pytest.mark.unshared
def test_a_shim_killed_meanwhile_costs_its_container_and_nothing_else(docker: Docker) -> None:
    name, other = (docker.start("sleep", "1000") for _ in range(2))
    pid, [shim] = docker.pid(name), shims(docker, name)
    docker.dockerd.kill()
    os.kill(shim, signal.SIGKILL)
    docker.dockerd.start()
    wait_until("the container is dead", lambda: not alive(pid))
    assert docker.wait_exit(name) in {137, 255}
    assert docker.state(other)["Running"]
    docker.ok("start", name)
    assert docker.exec(name, "sh", "-c", "exit 3").code == 3


def go(pid: int) -> None:
    """Let the container of ``pid`` go on, without docker."""
    Path(f"/proc/{pid}/root/go").touch()


def held(docker: Docker) -> list[int]:
    """Return how many bytes wait in each fifo of the containers."""
    sizes = []
    for path in fifos(docker.dockerd.root / "exec"):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            answer = fcntl.ioctl(fd, termios.FIONREAD, struct.pack("i", 0))
        finally:
            os.close(fd)
        sizes.append(int(struct.unpack("i", answer)[0]))
    return sizes
