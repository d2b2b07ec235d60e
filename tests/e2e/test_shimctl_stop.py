"""``shimctl stop`` and ``start`` of containerd's containers, which containerd runs again."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.ctr import RUNTIME
from tests.e2e.image import write_image
from tests.e2e.waiting import wait_until
from tests.shimctl import tool

if TYPE_CHECKING:
    import subprocess

    from tests.e2e.ctr import Ctr

pytestmark = pytest.mark.e2e
SCENARIO = "Life, signals, limits"
IMAGE = "docker.io/library/stops-by-usr1:latest"
SCRIPT = "trap '' TERM; trap 'exit 3' USR1; touch /ready; while :; do sleep 0.05; done"


def called(ctr: Ctr, *argv: str) -> subprocess.CompletedProcess[str]:
    daemon = ctr.containerd
    environ = os.environ | {"CONTAINERD_ADDRESS": str(daemon.address)}
    where = ("--state", daemon.root / "state", "-n", daemon.namespace, "-o", "json")
    return tool.shimctl(*argv, *where, env=environ)


def shimctl(ctr: Ctr, *argv: str) -> Any:
    done = called(ctr, *argv)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_stop_sends_the_stop_signal_of_the_image(ctr: Ctr, tmp_path: Path) -> None:
    write_image(tmp_path / "image.tar", tmp_path, IMAGE, StopSignal="SIGUSR1")
    ctr.ok("images", "import", tmp_path / "image.tar")
    try:
        name = ctr.new_id()
        ctr.ok("run", "-d", "--runtime", RUNTIME, IMAGE, name, "sh", "-c", SCRIPT)
        ready = Path(f"/proc/{ctr.pid(name)}/root/ready")
        wait_until("the container listens", ready.exists)
        stopped = shimctl(ctr, "stop", "-t", "30", name)
        assert (stopped["signal"], stopped["killed"]) == (signal.SIGUSR1, False)
        ctr.wait_state(name, "STOPPED")
        assert ctr.delete(name) == 3
    finally:
        ctr.ok("images", "rm", IMAGE)


def test_stop_sends_the_signal_of_the_option_first(ctr: Ctr) -> None:
    name = ctr.start("sh", "-c", SCRIPT)
    wait_until("the container listens", Path(f"/proc/{ctr.pid(name)}/root/ready").exists)
    stopped = shimctl(ctr, "stop", "-s", "USR1", "-t", "30", name)
    assert (stopped["signal"], stopped["killed"]) == (signal.SIGUSR1, False)
    ctr.wait_state(name, "STOPPED")
    assert ctr.delete(name) == 3


def test_start_and_restart_name_the_commands_of_ctr_which_work(ctr: Ctr) -> None:
    namespace = ctr.containerd.namespace
    name = ctr.start("sh", "-c", "exit 4")
    ctr.wait_state(name, "STOPPED")
    delete, start = f"task delete {name}", f"task start -d {name}"
    for verb, steps in (("start", (delete, start)), ("restart", (f"task kill {name}", delete))):
        done = called(ctr, verb, name)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
        assert "it is a container of another manager" in done.stderr
        for step in steps:
            assert f"`ctr -n {namespace} {step}`" in done.stderr
    ctr(*delete.split())
    ctr.ok(*start.split())
    ctr.wait_state(name, "STOPPED")
    assert ctr.delete(name) == 4
