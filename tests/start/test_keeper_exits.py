"""The keeper reaps the orphans of its daemons, and reports their exits."""

from __future__ import annotations

import os
import signal
import time

import pytest

from shim.recovery.inherited import DAEMON, LISTENER
from shim.recovery.messages import CLAIMED, DROP
from shim.start import keeper as keeper_module
from tests.start.keeping import NAME, Bench, Daemon, Guest, end, is_zombie, orphan


@pytest.mark.parametrize(("code", "status"), [(7, 7 << 8), (0, 0)])
def test_an_orphan_is_reaped_and_its_exit_told_until_its_pidfd_is_dropped(
    bench: Bench, code: int, status: int
) -> None:
    with orphan(code) as (pid, pidfd):
        daemon = bench.daemon()
        daemon.put(DAEMON, LISTENER, NAME, fds=[*(os.dup(pidfd) for _ in range(2)), pidfd])
        daemon.die()
        [kept] = bench.keeper.due()
        replacement = bench.replace(kept)
        assert replacement.exit_of(NAME) == []
        before = time.time_ns()
        end(pid)
        assert bench.keeper.reap(pid)
        assert not is_zombie(pid)
        for _ in range(2):
            told = [int(word) for word in replacement.exit_of(NAME)]
            assert told[0] == status
            assert before <= told[1] <= time.time_ns()
        replacement.send(DROP, NAME)
        assert replacement.exit_of(NAME) == []


def test_a_question_for_an_exit_reaps(bench: Bench) -> None:
    with orphan(7) as (pid, pidfd):
        daemon = bench.daemon()
        daemon.put(NAME, fds=[pidfd])
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert daemon.exit_of(NAME)[0] == str(int(signal.SIGKILL))
        assert not is_zombie(pid)


def test_what_is_no_pidfd_and_no_child_has_no_exit(bench: Bench) -> None:
    daemon = bench.daemon()
    daemon.put("null", "init", fds=[os.open(os.devnull, os.O_RDONLY), os.pidfd_open(1)])
    for name in ("null", "init", "unknown"):
        assert daemon.exit_of(name) == []


def test_an_orphan_without_a_pidfd_is_not_the_keepers(bench: Bench) -> None:
    bench.dead("one")
    with orphan(7) as (pid, pidfd):
        os.close(pidfd)
        end(pid)
        assert not bench.keeper.reap(pid)
        assert is_zombie(pid)


def test_orphans_wait_until_a_replacement_has_claimed_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    replacement = bench.replace(bench.dead())
    assert bench.keeper.has_claims
    replacement.send(CLAIMED)
    assert not bench.keeper.has_claims
    monkeypatch.setattr(keeper_module, "_CLAIM", 0.0)
    bench.replace(bench.dead())
    bench.keeper.expire()
    assert not bench.keeper.has_claims
    assert bench.keeper.deadlines == []


@pytest.mark.parametrize(("kind", "expected"), [(Daemon, True), (Guest, False)])
def test_orphans_wait_while_a_daemon_of_this_server_exits(
    bench: Bench, kind: type[Daemon], expected: bool
) -> None:
    """They are this server's before the daemon is a zombie; those of a guest never are."""
    daemon = kind(bench.keeper)
    bench.daemons.append(daemon)
    assert not bench.keeper.has_dying
    daemon.process.kill()
    os.waitid(os.P_PID, daemon.process.pid, os.WEXITED | os.WNOWAIT)
    assert bench.keeper.has_dying is expected
    daemon.process.wait()
    bench.keeper.ended(daemon.process.pid, signal.SIGKILL)
    assert not bench.keeper.has_dying
