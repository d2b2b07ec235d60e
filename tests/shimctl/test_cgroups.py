from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim.linux.mountinfo import parse
from shimctl.host.cgroups import roots_of
from shimctl.host.processes import belongs

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP = Path("/sys/fs/cgroup/memory")
JOIN = (
    "import sys; from shimctl.host.cgroups import join; from shim.linux.membership import read\n"
    "join(int(sys.argv[1])); assert read() == read(sys.argv[1]), read()"
)


@pytest.fixture(params=[b"a\x0cb", b"a\rb", b"caf\xe9", b"x (deleted)"], ids=ascii)
def odd(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A v1 group with such a name, beside one that is called as the part before the bytes."""
    if os.geteuid() != 0 or not (TOP / "cgroup.procs").exists():
        pytest.skip("needs root and cgroup v1")
    top = TOP / f"trio-shim-test-{secrets.token_hex(4)}"
    group, neighbour = top / os.fsdecode(request.param), top / os.fsdecode(request.param[:1])
    for path in (top, group, neighbour):
        path.mkdir()
    yield group
    for path in (group, neighbour, top):
        path.rmdir()


def test_a_group_with_an_odd_name_is_joined_and_recognised(odd: Path) -> None:
    with subprocess.Popen(["sleep", "100"]) as init, subprocess.Popen(["sleep", "100"]) as other:
        try:
            (odd / "cgroup.procs").write_text(str(init.pid))
            (odd.parent / odd.name[0] / "cgroup.procs").write_text(str(other.pid))
            assert belongs(init.pid, init.pid)
            assert not belongs(other.pid, init.pid)
            subprocess.run(
                [sys.executable, "-c", JOIN, str(init.pid)],
                check=True,
                cwd=Path(__file__).parents[2],
            )
        finally:
            init.kill()
            other.kill()


def test_a_hierarchy_may_be_mounted_under_any_name() -> None:
    table = (
        b"30 24 0:26 / /a\\040b\x0cc rw - cgroup2 cgroup2 rw\n"
        b"31 24 0:27 / /caf\xe9 rw - cgroup cgroup rw,cpu,cpuacct\n"
    )
    found = roots_of(["", "cpu,cpuacct"], parse(table))
    assert found == {"": "/a b\x0cc", "cpu,cpuacct": os.fsdecode(b"/caf\xe9")}
