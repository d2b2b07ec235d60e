"""Which cgroup is surely a container's own, so that what is in it may be killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from shim.container.bundle import Bundle
from shim.container.orphaned import cgroup_names, cleanup_record_of, own_part

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("", ["c1", "runc-c1.scope", "crun-c1.scope"]),
        ("/default/c1", ["default/c1"]),
        ("kubepods//burst/../c1/", ["kubepods/c1"]),
        ("system.slice:docker:abc", ["docker-abc.scope"]),
        ("system.slice::abc", ["abc.scope"]),
        ("user.slice:x:own.slice", ["own.slice"]),
    ],
)
def test_a_cgroup_is_called_as_the_configuration_says(path: str, names: list[str]) -> None:
    assert cgroup_names(path, "c1") == names


def test_a_cgroup_is_called_as_the_runtime_reads_it(tmp_path: Path) -> None:
    text = b'{"x": %s, "linux": {"cgroupsPath": "/x/caf\xe9"}}' % (b"[" * 5000 + b"]" * 5000)
    (tmp_path / "config.json").write_bytes(text)
    assert cleanup_record_of(Bundle(tmp_path), "c1", "default").cgroups == ("x/caf\ufffd",)


@pytest.mark.parametrize(
    ("directory", "part"),
    [
        ("/sys/fs/cgroup/default/c1", "/sys/fs/cgroup/default/c1"),
        ("/sys/fs/cgroup/default/c1/init.scope", "/sys/fs/cgroup/default/c1"),
        ("/sys/fs/cgroup/default/c10", ""),
        ("/sys/fs/cgroup/xdefault/c1", ""),
        ("/sys/fs/cgroup/default", ""),
        ("/sys/fs/cgroup/default/default/c1", "/sys/fs/cgroup/default/default/c1"),
    ],
)
def test_a_process_below_it_is_in_it_and_one_beside_it_is_not(directory: str, part: str) -> None:
    assert own_part(directory, ["default/c1"]) == part
