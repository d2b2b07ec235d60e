"""Containers on a host of cgroup version 2, in a mount namespace that makes this one look so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.inside_v2 import CHECKS

pytestmark = pytest.mark.e2e
_V2 = (
    "mount --make-rprivate / && umount -R /sys/fs/cgroup && "
    'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
)


@pytest.mark.parametrize("check", CHECKS)
def test_on_version_2(check: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    argv = [sys.executable, "-m", "tests.process.inside_v2", check]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", _V2, "sh", *argv],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
