"""Which cgroup is surely a container's own, so that what is in it may be killed."""

from __future__ import annotations

import pytest

from shim.container.abandoned import cgroup_names, own_part


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
