"""containerd's view of a container with a log disk that hangs: only its log waits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_lifecycle import alive
from tests.e2e.test_restart import shim_pids
from tests.e2e.waiting import PATIENCE, wait_until
from tests.frozen import file_helpers, freezable_disk

if TYPE_CHECKING:
    from tests.e2e.ctr import Ctr

pytestmark = pytest.mark.e2e
SCENARIO = "A log disk that hangs"
WRITER = "trap '' PIPE; i=0; while :; do i=$((i+1)); echo $i; done"


def is_stuck(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"


def test_a_restart_of_containerd_keeps_the_pod_whose_log_disk_hangs(
    ctr: Ctr, tmp_path: Path
) -> None:
    group = ("--annotation", f"io.containerd.runc.v2.group={ctr.new_id('pod')}")
    with freezable_disk(tmp_path / "image", tmp_path / "disk") as disk:
        other = ctr.start("sleep", "1000", flags=(*group, "--null-io"))
        uri = f"file://{disk.path}/log"
        writer = ctr.start("sh", "-c", WRITER, flags=(*group, "--log-uri", uri))
        pids = {name: ctr.pid(name) for name in (other, writer)}
        shims = shim_pids(ctr)
        disk.freeze()
        wait_until("the log waits", lambda: any(map(is_stuck, file_helpers(disk.path))))
        before = time.monotonic()
        assert ctr.exec(other, "sh", "-c", "exit 3").code == 3
        assert ctr.exec(writer, "sh", "-c", "exit 4").code == 4
        ctr.ok("task", "metrics", writer)
        assert time.monotonic() - before < 5 * PATIENCE

        ctr.containerd.restart()
        assert {name: ctr.pid(name) for name in pids} == pids
        assert {ctr.state(name) for name in pids} == {"RUNNING"}
        assert shim_pids(ctr) == shims
        assert all(alive(pid) for pid in pids.values())
        ctr.kill(writer)
        ctr.wait_state(writer, "STOPPED")
        assert ctr.delete(writer) == 137
        assert ctr.exec(other, "sh", "-c", "exit 5").code == 5
        ctr.kill(other)
        ctr.wait_state(other, "STOPPED")
        assert ctr.delete(other) == 137
        wait_until("the shim has ended", lambda: not shim_pids(ctr))
        disk.thaw()
        wait_until("nothing writes any more", lambda: not file_helpers(disk.path))
