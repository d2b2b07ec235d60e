from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shim.cgroup.v2 import CgroupV2, enable_controllers

_V2 = (
    "mount --make-rprivate / && umount -R /sys/fs/cgroup && "
    'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
)


def test_a_version_2_host_works() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    argv = [sys.executable, "-m", "tests.cgroup.inside_v2"]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", _V2, "sh", *argv],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_every_parent_hands_down_what_it_is_offered(tmp_path: Path) -> None:
    group = tmp_path / "pod" / "c1"
    group.mkdir(parents=True)
    for parent in (tmp_path, tmp_path / "pod", group):
        (parent / "cgroup.controllers").write_text("cpu memory\n")
        (parent / "cgroup.subtree_control").write_text("cpu\n")
    enable_controllers(CgroupV2(str(group), str(tmp_path)))
    for parent in (tmp_path, tmp_path / "pod"):
        assert (parent / "cgroup.subtree_control").read_text().startswith("+mem")
    assert (group / "cgroup.subtree_control").read_text() == "cpu\n"


def test_controllers_that_cannot_be_enabled_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu\n")
    enable_controllers(CgroupV2(str(tmp_path / "c1"), str(tmp_path)))
    assert not (tmp_path / "cgroup.subtree_control").exists()
