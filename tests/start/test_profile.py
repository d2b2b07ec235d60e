"""A replacement gets the attributes of its daemon, each for itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim import log
from shim.daemon import Settings
from shim.linux import libc
from shim.start import profile
from shim.start.profile import Profile


class Cores:
    """Stands for the kernel's core scheduling, which needs a processor with SMT.

    ``alive`` are the processes with a cookie.  ``calls`` are those of this process: the pid of
    the process that it shares a cookie with, 0 for a new cookie.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *alive: int) -> None:
        self.calls: list[int] = []
        self.alive = alive
        monkeypatch.setattr(libc, "share_core_cookie", self.share)
        monkeypatch.setattr(libc, "create_core_cookie", lambda: self.calls.append(0))

    def share(self, pid: int) -> None:
        if pid not in self.alive:
            raise ProcessLookupError
        self.calls.append(pid)


@pytest.mark.parametrize(
    ("alive", "calls"),
    [
        pytest.param([11, 12], [11], id="the first process"),
        pytest.param([12], [12], id="a later process, as the first has ended"),
        pytest.param([], [0], id="none is left"),
    ],
)
def test_a_replacement_shares_the_core_of_the_first_process_that_is_left(
    monkeypatch: pytest.MonkeyPatch, alive: list[int], calls: list[int]
) -> None:
    cores = Cores(monkeypatch, *alive)
    profile._share_core([11, 12])
    assert cores.calls == calls


def test_a_missing_oom_score_does_not_keep_a_replacement_out_of_its_cgroup_and_core(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without CAP_SYS_RESOURCE the kernel refuses a lower score than that of the fork server."""
    found = Profile.of_this_process(
        Settings("ns", "c1", "/bundle", "", ""),
        b"",
        ["shim"],
        log.INFO,
        "/absent",
        sched_core=True,
    )
    cores = Cores(monkeypatch, 11)
    monkeypatch.setattr(profile, "_OOM_SCORE", Path("/"))  # cannot be written
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        try:
            log.configure(writer, log.INFO)
            found.apply([11])
            os.write(writer, b"shares the core of %d" % cores.calls[0])
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with open(reader) as file:
        lines = file.read().splitlines()
    assert len(lines) == 3
    assert "is a directory" in lines[0]
    assert "cannot join shim_cgroup" in lines[1]
    assert lines[2] == "shares the core of 11"
