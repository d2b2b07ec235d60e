"""A replacement gets the attributes of its daemon, each for itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from shim import log
from shim.daemon import Settings
from shim.start import profile
from shim.start.profile import Profile

if TYPE_CHECKING:
    import pytest


def test_a_missing_oom_score_does_not_keep_a_replacement_out_of_its_cgroup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without CAP_SYS_RESOURCE the kernel refuses a lower score than that of the fork server."""
    found = Profile.of_this_process(
        Settings("ns", "c1", "/bundle", "", ""),
        b"",
        ["shim"],
        log.INFO,
        "/absent",
        sched_core=False,
    )
    monkeypatch.setattr(profile, "_OOM_SCORE", Path("/"))  # cannot be written
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            log.configure(writer, log.INFO)
            found.apply([])
        finally:
            os._exit(0)
    os.close(writer)
    os.wait()
    with open(reader) as file:
        lines = file.read().splitlines()
    assert len(lines) == 2
    assert "is a directory" in lines[0]
    assert "cannot join shim_cgroup" in lines[1]
