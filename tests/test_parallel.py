"""Workers do not see each other, and each test's time counts for its ring."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.parallel import group_of, ring_of, rings

TESTS = Path(__file__).parent
WORKER = TESTS / "worker"
needs_namespaces = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


def in_worker(script: str) -> str:
    command = [str(WORKER), "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip()


def test_a_ring_is_a_directory_below_tests() -> None:
    assert ring_of(TESTS / "stdio/whole/test_policies.py") == "stdio"
    assert ring_of(TESTS / "test_reaper.py") == "shim"
    assert ring_of(Path("/elsewhere/test_it.py")) == "shim"


def test_the_slowest_ring_comes_first() -> None:
    lines = rings([("a", 1.0), ("b", 2.5), ("a", 0.5)])
    assert [line.split() for line in lines] == [
        ["2.5", "s", "1", "tests", "b"],
        ["1.5", "s", "2", "tests", "a"],
    ]


@pytest.fixture(params=["one", "two"])
def containerd(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_tests_of_one_manager_are_one_group(
    containerd: str, request: pytest.FixtureRequest
) -> None:
    assert group_of(request.node) == f"shim under {containerd}"


def test_other_tests_are_grouped_by_module(request: pytest.FixtureRequest) -> None:
    assert group_of(request.node) == str(Path(__file__))


@needs_namespaces
def test_a_worker_sees_no_process_and_no_socket_of_the_host(tmp_path: Path) -> None:
    assert in_worker("ls /proc | grep -c '^[0-9]'") in {"3", "4", "5"}
    assert in_worker("ls /run") == "lock"


@needs_namespaces
def test_what_a_worker_mounts_is_not_mounted_outside(tmp_path: Path) -> None:
    in_worker(f"mount -t tmpfs tmpfs {tmp_path} && touch {tmp_path}/inside")
    assert not list(tmp_path.iterdir())


@needs_namespaces
def test_a_worker_that_is_killed_leaves_no_process() -> None:
    read, write = os.pipe()
    with subprocess.Popen(
        [WORKER, "sh", "-c", "echo ready; exec sleep 1000"], stdout=write, pass_fds=(write,)
    ) as worker:
        os.close(write)
        assert os.read(read, 6) == b"ready\n"
        worker.kill()
    # The pipe ends when the last process that holds it does.
    assert os.read(read, 1) == b""
    os.close(read)
