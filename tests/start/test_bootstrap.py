"""A daemon is forked, and leaves its files with the fork server; a test is its parent."""

from __future__ import annotations

import os
import signal
import socket
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, NoReturn, cast

import pytest

from shim import log
from shim.daemon import Settings
from shim.errors import UnavailableError
from shim.start import bootstrap, launcher
from shim.start.caller import Caller
from shim.start.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from shim.start.flags import Invocation


def problem_of(monkeypatch: pytest.MonkeyPatch, child: Callable[[], object]) -> str:
    """Return the error of a ``start`` whose process runs ``child``."""

    def become(*_: object) -> NoReturn:
        try:
            child()
        finally:
            os._exit(0)

    monkeypatch.setattr(bootstrap, "become_daemon", become)
    with pytest.raises(UnavailableError) as caught:
        bootstrap.start(cast("Invocation", SimpleNamespace()), "shim", time.monotonic() + 16)
    return str(caught.value)


def test_a_process_that_ends_before_its_answer_is_no_slow_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert problem_of(monkeypatch, lambda: None) == (
        "cannot start the shim: its process has ended, or was stopped, before its answer; "
        "see the manager's log"
    )


@pytest.mark.parametrize("state", ["R", "S"])
def test_the_error_of_a_start_has_the_seconds_that_it_took(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str
) -> None:
    """A child that waits for a processor has more of them."""
    monkeypatch.chdir(tmp_path)

    def fail(*_: object) -> NoReturn:
        times = iter([60.2])
        monkeypatch.setattr(bootstrap, "time", SimpleNamespace(monotonic=times.__next__))
        raise TimeoutError

    monkeypatch.setattr(bootstrap, "time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr(launcher, "receive", fail)
    monkeypatch.setattr(launcher, "_state_of", lambda _: state.encode())
    cause = {
        "R": "the machine has no free processor, try again later",
        "S": f"check the disk of {tmp_path}, and",
    }
    assert f"no answer within 60 s; {cause[state]}" in problem_of(monkeypatch, signal.pause)


@pytest.mark.parametrize("path", ["/absent/a1-own", ""])
def test_a_daemon_whose_fork_server_has_ended_waits_for_another(path: str) -> None:
    profile = Profile.of_this_process(
        Settings("ns", "c1", "/bundle", "", ""), b"", ["shim"], log.INFO, "", sched_core=False
    )
    channel, keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper.close()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, channel:
        deposit = bootstrap._leave(channel, path, profile, theirs, Caller(ours, os.getpid()))
        assert channel.fileno() < 0 or not path
        assert (deposit.is_active, deposit.server) == (bool(path), path)
        assert not deposit.is_kept
        deposit.close()
