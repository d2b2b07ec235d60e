"""The kernel limits the fds that wait in the channels of all daemons, in a user namespace."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.recovery import crowd


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare of util-linux")
def test_a_keeper_reads_all_channels_when_the_kernel_accepts_no_more_fds() -> None:
    """Each daemon's fds arrive, though the first two alone reach the limit unread."""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-m", crowd.__name__],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == ([str(crowd.EACH)] * 3, "")
