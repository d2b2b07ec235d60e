"""shimctl reads the files and the records of the CRI plugin: logs, stop signals."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e.ctr import Ctr
from tests.e2e.image import write_image
from tests.e2e.waiting import wait_until
from tests.shimctl import tool

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cri.pods import Pod

pytestmark = pytest.mark.e2e
SCENARIO = "Logging"


def shimctl(pod: Pod, *argv: str) -> subprocess.CompletedProcess[str]:
    state = str(pod.node.root / "state")
    environ = os.environ | {"CONTAINERD_ADDRESS": str(pod.node.address)}
    return tool.shimctl(*argv[:1], "--state", state, *argv[1:], env=environ)


def test_shimctl_shows_and_follows_the_log_of_a_container(pod: Pod) -> None:
    script = "seq 1 50; echo err >&2; while ! test -e /go; do sleep 0.05; done; echo last; exit 3"
    container = pod.start("sh", "-c", script, name="shown")
    pod.wait_lines("shown", 51)
    done = shimctl(pod, "logs", container)
    assert (done.returncode, done.stderr) == (0, "err\n")
    assert done.stdout.split() == [str(n) for n in range(1, 51)]
    done = shimctl(pod, "logs", "--tail", "11", container)
    assert len((done.stdout + done.stderr).split()) == 11
    state = str(pod.node.root / "state")
    command = [sys.executable, "-m", "shimctl", "logs", "--state", state, "-f", "-t", container]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        assert following.stdout.readline().endswith("Z 1\n")
        pod.exec(container, "touch", "/go")
        out, err = following.communicate(timeout=60)
    assert out.endswith("Z last\n")
    assert err.endswith("Z err\n")
    assert following.returncode == 0


def test_a_sandbox_has_no_log_and_shimctl_says_so(pod: Pod) -> None:
    wait_until("the pod is ready", pod.ready)
    done = shimctl(pod, "logs", pod.id)
    assert (done.returncode, done.stdout) == (125, "")
    assert "it is the sandbox of a pod" in done.stderr


def test_stop_sends_the_stop_signal_of_the_image(pod: Pod, tmp_path: Path) -> None:
    image = "docker.io/library/stops-by-usr1:latest"
    write_image(tmp_path / "image.tar", tmp_path, image, StopSignal="SIGUSR1")
    ctr = Ctr(pod.node)
    ctr.ok("images", "import", tmp_path / "image.tar")
    try:
        wait_until("the CRI knows the image", lambda: pod.node.has_image(image))
        script = "trap '' TERM; trap 'exit 3' USR1; echo up; while :; do sleep 0.05; done"
        container = pod.start("sh", "-c", script, image=image)
        pod.wait_lines("c0", 1)
        done = shimctl(pod, "stop", "-t", "30", container)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{container}\n", "")
        assert pod.wait_exit(container)[0] == 3
    finally:
        ctr.ok("images", "rm", image)
