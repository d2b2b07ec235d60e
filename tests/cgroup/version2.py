"""A host of cgroup version 2: a mount namespace in which this host looks like one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_MOUNT = (
    "mount --make-rprivate / && umount -R /sys/fs/cgroup && "
    'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
)


def check_on_version_2(module: str, *args: str) -> None:
    """Run the module ``module``, which prints ``ok`` if its checks succeed, on such a host."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", _MOUNT, "sh", sys.executable, "-m", module, *args],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
