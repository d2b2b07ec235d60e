"""shimctl shows the logs of a pod's containers from the files of the CRI plugin."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from tests.cri.pods import Pod

pytestmark = pytest.mark.e2e
SCENARIO = "Logging"


def shimctl(pod: Pod, *argv: str) -> subprocess.CompletedProcess[str]:
    state = str(pod.node.root / "state")
    return subprocess.run(
        [sys.executable, "-m", "shimctl", *argv[:1], "--state", state, *argv[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


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
