"""A state directory that takes nothing more: logged, waited for, and without an effect on
containers.
"""

from __future__ import annotations

import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.minid.manager import Manager

pytestmark = pytest.mark.e2e

FOREVER: dict[str, Any] = {"command": ["sleep", "1000"], "grace": 0.1}


def limit(state: Path, options: str) -> None:
    state.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(state)], check=True)


def fill(state: Path) -> Path:
    """Leave no room in ``state``; return what to remove to have some again."""
    ballast = state / "ballast"
    with open(ballast, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def test_what_cannot_be_written_down_is_done_once_it_can(manager: Manager) -> None:
    limit(manager.state, "size=2m,mode=700")
    web = FOREVER | {"restart": "always", "backoff": {"start": 0}}
    manager.write(web=web, kept=FOREVER, changed=FOREVER)
    manager.start()
    for name in ("web", "kept", "changed"):
        manager.wait_status(name, "running")
    before = manager.ask("ps")
    ballast = fill(manager.state)

    manager.write(web=web, kept=FOREVER, changed=FOREVER | {"environment": {"A": "b"}})
    assert manager.process is not None
    manager.process.send_signal(signal.SIGHUP)
    wait_until("it says so", lambda: "no space left on device" in manager.said.lower())
    refused = manager.run("restart", "kept")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "no space left on device" in refused.stderr.lower()
    subprocess.run(["kill", "-9", str(before["web"]["pid"])], check=True)
    wait_until("its end is known", lambda: "web: " in manager.said)
    assert manager.ask("ps")["kept"] == before["kept"]
    assert manager.exits() == []

    ballast.unlink()
    manager.ask("up")
    after = manager.wait_for(
        "both run again",
        lambda ps: all(
            (ps[name]["generation"], ps[name]["status"]) == (2, "running")
            for name in ("web", "changed")
        ),
    )
    assert (manager.codes("web"), manager.codes("changed")) == ([137], [137])
    assert after["kept"] == before["kept"]


def test_what_keeps_it_from_beginning_is_one_line(manager: Manager) -> None:
    limit(manager.state, "size=2m,mode=700")
    manager.write(web=FOREVER | {"restart": "always"})
    manager.start()
    manager.wait_status("web", "running")
    manager.ask("down")
    manager.end()
    fill(manager.state)
    done = manager.run()  # has to write down that web is wanted again
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no space left on device" in done.stderr.lower()
    subprocess.run(["mount", "-o", "remount,ro", str(manager.state)], check=True)
    done = manager.run()
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "read-only file system" in done.stderr.lower()
