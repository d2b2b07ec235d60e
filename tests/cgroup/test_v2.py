"""Controllers and files of cgroup version 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shim.cgroup.v2 import CgroupV2, enable_controllers
from tests.cgroup.version2 import check_on_version_2

if TYPE_CHECKING:
    from pathlib import Path


def test_a_version_2_host_works() -> None:
    check_on_version_2("tests.cgroup.inside_v2")


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
